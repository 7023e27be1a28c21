"""The peers: one adapter each.

Every one encodes and decodes with `event`, and uses its own API at its quickest. A yardstick is no peer: it carries
nothing, and says what a figure is to be measured by.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, cast

from .. import frames

if TYPE_CHECKING:
    from ..contract import Idle, Peer

MODULES: Final[dict[str, tuple[str, Idle]]] = {
    "shmbus": ("fabric", "adaptive"),
    "shmbus park": ("fabric", "park"),
    "shmbus spin": ("fabric", "spin"),
    "mp.Queue": ("mp_queue", "park"),
    "mp.Pipe": ("pipe", "park"),
    "pyzmq": ("push_pull", "park"),
    "pyzmq pub": ("publish_subscribe", "park"),
    "faster-fifo": ("fifo", "park"),
    "cloudtoid": ("cloud_queue", "park"),
    "subetha spin": ("slot_ring", "spin"),
    "subetha park": ("slot_ring", "park"),
    "kickmsg": ("kick", "park"),
    "mmbus": ("map_bus", "park"),
    "iceoryx2 spin": ("samples", "spin"),
    "iceoryx2 park": ("samples", "park"),
    "redis": ("streams", "park"),
    "ceiling": ("ceiling", "spin"),
    "spin loop": ("spin_loop", "spin"),
    "semaphores": ("semaphores", "park"),
}
"""By the name that the results carry: an adapter, and how its receivers wait. The modules are not named after what they
import."""

YARDSTICKS: Final = frozenset({"ceiling", "spin loop", "semaphores", "memcpy"})
"""Measured only where a workload names them."""


def load(name: str) -> Peer:
    """The adapter of a peer. Raises ImportError where it is not installed."""
    return cast("Peer", importlib.import_module(f".{MODULES[name][0]}", __package__))


def carrier(name: str, shape: str) -> Any:
    """The adapter of a peer for a shape: a Peer or a FramePeer. Raises ImportError."""
    return frames.load(name) if shape in frames.SHAPES else load(name)


def known(shape: str) -> dict[str, tuple[str, Idle]]:
    """The peers that there are for a shape."""
    return frames.MODULES if shape in frames.SHAPES else MODULES


EVERY: Final = MODULES | frames.MODULES
"""All names there are."""


def is_variant(name: str, shape: str = "one") -> bool:
    """Whether an adapter stands under an earlier name too, with another way to wait."""
    modules = known(shape)
    module = modules[name][0]
    return next(first for first, (its, _) in modules.items() if its == module) != name
