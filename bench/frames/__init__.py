"""The peers at frames and rows: what moves large blocks of bytes, one adapter each, without a codec.

An adapter sends what is in an array by one copy, hands out memory to write into where the peer can, and gives the
receiver a view. Needs NumPy. A yardstick is no peer: `memcpy` copies and sends nothing, `ceiling` encodes and decodes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from ..contract import FramePeer, Idle

MODULES: Final[dict[str, tuple[str, Idle]]] = {
    "shmbus": ("fabric", "adaptive"),
    "shmbus park": ("fabric", "park"),
    "shmbus spin": ("fabric", "spin"),
    "pyzmq": ("push_pull", "park"),
    "faster-fifo": ("fifo", "park"),
    "mmbus": ("map_bus", "park"),
    "iceoryx2 spin": ("samples", "spin"),
    "iceoryx2 park": ("samples", "park"),
    "momentumx": ("stream", "park"),
    "shared_memory": ("by_hand", "park"),
    "memcpy": ("copies", "spin"),
    "ceiling": ("objects", "spin"),
}
"""By the name that the results carry, as in `peers`."""

SHAPES: Final = frozenset({"frames", "loans", "rows"})


def load(name: str) -> FramePeer:
    """The adapter of a peer. Raises ImportError where it is not installed."""
    return cast("FramePeer", importlib.import_module(f".{MODULES[name][0]}", __package__))
