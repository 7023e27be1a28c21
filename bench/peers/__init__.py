"""The peers: one adapter each.

Every one encodes and decodes with `bench.event`, and uses its own API at its quickest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from bench.contract import Peer

MODULES: Final = {
    "shmbus": "bench.peers.fabric",
    "mp.Queue": "bench.peers.mp_queue",
    "pyzmq": "bench.peers.push_pull",
    "ceiling": "bench.peers.ceiling",
}
"""By the name that the results carry; the modules are not named after what they import."""


def load(name: str) -> Peer:
    """The adapter of a peer. Raises ImportError where it is not installed."""
    return cast("Peer", importlib.import_module(MODULES[name]))
