"""W9w: one to one, rows of 256 bytes in batches of 4,096."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from . import rows
from .rows import consume, produce

__all__ = ["SETUP", "consume", "produce"]

SETUP: Final = replace(rows.SETUP, size=256)
