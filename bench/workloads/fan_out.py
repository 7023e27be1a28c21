"""W3: one to four, all see all, an event a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.workloads.one_to_one import consume, produce

if TYPE_CHECKING:
    from bench.contract import Shape

__all__ = ["BATCH", "CEILING", "PACED", "RECEIVERS", "SHAPE", "consume", "produce"]

SHAPE: Final[Shape] = "all"
RECEIVERS: Final = 4
BATCH: Final = 1
PACED: Final = False
CEILING: Final = True
