"""The workloads: one file each, which says what the sending process and each receiving process do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from bench.contract import Workload

MODULES: Final = {
    "w1": "bench.workloads.one_to_one",
    "w1b": "bench.workloads.batch",
    "w2": "bench.workloads.paced",
    "w3": "bench.workloads.fan_out",
    "w5": "bench.workloads.workers",
}
"""By the name that the results carry."""


def load(name: str) -> Workload:
    """A workload."""
    return cast("Workload", importlib.import_module(MODULES[name]))


def title(name: str) -> str:
    """What a workload is, in a line."""
    text = importlib.import_module(MODULES[name]).__doc__ or ""
    return text.partition("\n")[0].rstrip(".")
