"""Benchmarks: shmbus beside its peers, in one run, with one event and one codec.

    python -m bench [--quick] [--only w1,w3] [--peers shmbus,pyzmq] [--json FILE]      in a clone
    shmbus bench [the same]                                                            installed, with shmbus[bench]

Layout: `event` is what everybody sends and checks; `workloads/` says who does what, a file each; `peers/` carries it,
an adapter each; `processes` runs one workload once with one peer; `suite` interleaves and repeats; `results` is what
is kept, `machine` where it was, `report` what is printed, `table` and `plot` what is published.

Must stay true: the package imports nothing from here but for the command; here shmbus is imported as a user does, and
everything else relative, since this folder is `bench` in a clone and `shmbus.bench` installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "bench":
    _ROOT = Path(__file__).resolve().parents[1]
    # The clone's own shmbus/ may be uncompiled: what is installed goes first. Spawned children inherit the order.
    sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != _ROOT), str(_ROOT)]
