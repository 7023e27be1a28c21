"""Benchmarks: shmbus beside its peers, in one run, with one event and one codec.

    python -m bench [--quick] [--only w1,w3] [--peers shmbus,pyzmq] [--json FILE]      (needs shmbus[bench])

Layout: `event` is what everybody sends and checks; `workloads/` says who does what, a file each; `peers/` carries it,
an adapter each; `processes` runs one workload once with one peer; `suite` interleaves and repeats; `results` is what
is kept, `report` what is printed.

Must stay true: nothing here is part of the installed package, and the package imports nothing from here.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# The clone's own shmbus/ may be uncompiled: what is installed goes first. Spawned children inherit the order.
sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != _ROOT), str(_ROOT)]
