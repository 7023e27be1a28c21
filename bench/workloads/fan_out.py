"""W3: one to four, all see all, an event a call."""

from __future__ import annotations

from typing import Final

from ..contract import Setup
from .one_to_one import consume, produce

__all__ = ["SETUP", "consume", "produce"]

SETUP: Final = Setup("all", receivers=4)
