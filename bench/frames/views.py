"""What several adapters do alike with a block of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan


def length(plan: Plan) -> int:
    """Bytes of every block: a frame, or a batch of rows."""
    return plan.size * plan.batch


def slots(plan: Plan) -> int:
    """How many blocks the capacity is."""
    return max(2, plan.capacity // length(plan))


def rows(blocks: Iterable[Any], dtype: Any) -> Iterator[Any]:
    """The blocks as structured arrays, in place."""
    return (np.frombuffer(block, dtype) for block in blocks)
