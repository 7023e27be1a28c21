"""The workloads: one file each, which says what the sending process and each receiving process do.

Those in ALONE are about shmbus by itself: they measure and judge in their own way, and no peer takes part.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from types import ModuleType

    from ..contract import Workload

MODULES: Final = {
    "w1": "one_to_one",
    "w1b": "batch",
    "w2": "paced",
    "w3": "fan_out",
    "w4": "fan_in",
    "w5": "workers",
    "w6": "frames",
    "w6m": "large",
    "w6z": "loans",
    "w7": "ping_pong",
    "w9": "rows",
    "w9w": "wide_rows",
}
"""By the name that the results carry."""

ALONE: Final = {
    "w6f": "payloads",
    "w8": "growth",
    "idle": "idle",
}


def load(name: str) -> Workload:
    """A workload of MODULES."""
    return cast("Workload", _module(name))


def title(name: str) -> str:
    """What a workload is, in a line."""
    return (_module(name).__doc__ or "").partition("\n")[0].rstrip(".")


def alone(name: str) -> ModuleType:
    """A workload of ALONE."""
    return _module(name)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{(MODULES | ALONE)[name]}", __package__)
