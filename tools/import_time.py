"""How long `import shmbus` takes beside `import msgspec, posix_ipc`, in fresh interpreters that take turns.

    python tools/import_time.py [--rounds 40]

Prints the median of each, with what it takes to have every name and to take part in a bus, and the ratio. Compile the
package first (`python -m compileall shmbus`), for an interpreter that may not write .pyc files compiles it every time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

BASE = "import msgspec, posix_ipc"
PARTICIPANT = """
import shmbus, sys
topic = shmbus.Topic("t", int)
with shmbus.Bus(sys.argv[1], supervise=False) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
    pub.publish(1), sub.receive()
"""
CASES = {
    BASE: BASE,
    "import shmbus": "import shmbus",
    "every name": "from shmbus import *",
    "a participant": PARTICIPANT,
    "nothing": "",
}


def took(code: str) -> float:
    """Seconds from start to end of an interpreter that runs the code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, f"imports-{os.getpid()}"], check=True)
    return time.perf_counter() - began


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the time of import shmbus beside that of its dependencies")
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, code in CASES.items():
            times[name].append(took(code))
    base = statistics.median(times[BASE])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:28} {median * 1e3:6.1f} ms   x {median / base:.2f}   least {min(taken) * 1e3:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
