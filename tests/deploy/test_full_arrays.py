"""Arrays through queues and executors where /dev/shm has no room for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from events import PATIENT
from support import Processes, child_environment, child_source

pytest.importorskip("numpy", reason="NumPy is not installed")


def crowded() -> None:
    """Fills a small /dev/shm with the arrays of a queue, then has an executor work beside it."""
    import os

    import numpy as np

    from shmbus.errors import NoSpaceError
    from shmbus.futures import Executor
    from shmbus.queues import Queue

    array, count = np.ones(1 << 20), 0
    queue: Queue[object] = Queue()
    try:
        while True:
            queue.put(array)
            count += 1
    except NoSpaceError:
        print("refused", sum("large-" in name for name in os.listdir("/dev/shm")) == count > 1)
    queue.put("small")
    print("got", all(np.all(queue.get(timeout=30) == 1) for _ in range(count)), queue.get(timeout=30), queue.qsize())
    queue.close()
    with Executor(1) as pool:
        print("worked", [pool.submit(np.add, np.ones(4 << 20), 1).result(60).sum().item() == 8 << 20 for _ in range(3)])
        pid = os.getpid()
    print("left", [name for name in os.listdir(os.environ["TMPDIR"]) if f"-{pid}-" in name])


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a small /dev/shm needs root and unshare(1)"
)
def test_arrays_in_a_full_place(processes: Processes, tmp_path: Path) -> None:
    """put raises NoSpaceError and nothing is lost; an executor goes by the folder for temporary files and clears it."""
    mount = 'mount -t tmpfs -o size=40m tmpfs /dev/shm && exec "$@"'
    enter = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no /dev/shm of its own can be mounted here")
    environment = {**child_environment(), "TMPDIR": str(tmp_path)}
    child = processes.run([*enter, sys.executable, "-c", child_source(crowded)], env=environment)
    out, _ = child.communicate(timeout=2 * PATIENT)
    said = dict(text.split(" ", 1) for text in out.splitlines())
    assert child.returncode == 0, out
    assert said["refused"] == "True", said
    assert said["got"] == "True small 0", said
    assert said["worked"] == "[True, True, True]", said
    assert said["left"] == "[]", said
