"""What an import loads: nothing that a process does not need to take part, for 512 of them may start at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import child_environment

import shmbus

NEEDED = {"msgspec", "posix_ipc"}
DEAR = {
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "hashlib",
    "logging",
    "multiprocessing",
    "pickle",
    "psutil",
    "rich",
    "shmbus._ledger.books",
    "shmbus._schema.refusal",
    "shmbus.cli",
    "shmbus.diagnostics",
    "shmbus.inspect",
    "shmbus.supervisor",
    "socket",
    "ctypes",
    "ssl",
    "subprocess",
    "traceback",
}
"""A millisecond each, and more; in what they load themselves too."""

TAKE_PART = """
topic = shmbus.Topic("t", int)
with shmbus.Bus(sys.argv[1], supervise=False) as bus, bus.publisher(topic) as pub, bus.subscriber(topic) as sub:
    with bus.worker(topic, group="g") as worker:
        pub.publish(1)
        sub.receive(timeout=5), worker.receive(timeout=5), worker.ack()
"""


THREADS = """
import threading, shmbus
found = []
threads = [threading.Thread(target=lambda: found.append(shmbus.Worker)) for _ in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert len(set(found)) == 1 and len(found) == 8
"""


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that code loads in a fresh interpreter, but for those of the dependencies and of the start."""
    last = "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    script = f"import sys\nbefore = set(sys.modules)\n{code}\n{last}"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_loads_nothing() -> None:
    """`import shmbus` loads none of its modules, none of its dependencies, and nothing that is dear."""
    found = loaded("import shmbus")
    assert {name for name in found if name.startswith("shmbus")} == {"shmbus"}
    assert not found & (DEAR | NEEDED)


def test_taking_part_loads_what_it_needs(bus_name: str) -> None:
    """Who publishes, subscribes and works loads nothing that is dear, beyond what the dependencies load."""
    own = loaded("import msgspec, posix_ipc")
    assert (loaded(f"import shmbus\n{TAKE_PART}", bus_name) - own) & DEAR == set()


def test_names_are_fetched_once() -> None:
    """Every public name is an attribute once it was used, and in `dir` before; others are an AttributeError."""
    assert set(shmbus.__all__) <= set(dir(shmbus))
    for name in shmbus.__all__:
        assert getattr(shmbus, name) is vars(shmbus)[name]
    assert {"errors", "topic", "bus", "stats"} <= set(dir(shmbus))
    wrong = "Buss"
    with pytest.raises(AttributeError, match="module 'shmbus' has no attribute 'Buss'"):
        getattr(shmbus, wrong)


@pytest.mark.parametrize(
    "code",
    [
        "from shmbus import *; assert Bus.__name__ == 'Bus' and issubclass(Full, ShmbusError)",
        "import shmbus; assert issubclass(shmbus.errors.Full, shmbus.ShmbusError)",
        "import shmbus.cli, shmbus; shmbus.Topic",
        "from shmbus import _core, inspect, Topic",
        "import pickle, shmbus; assert pickle.loads(pickle.dumps(shmbus.Topic)) is shmbus.Topic",
        THREADS,
    ],
)
def test_every_way_to_import(code: str) -> None:
    """Stars, modules as attributes, submodules first, and many threads at once: all find the same names."""
    loaded(code)


def test_loggers_are_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged late is logged by the logger of that name, and says who called."""
    from shmbus._log import logger

    logger("shmbus.test").warning("%d lost", 5)
    [record] = caplog.records
    assert (record.name, record.getMessage(), record.pathname) == ("shmbus.test", "5 lost", __file__)
