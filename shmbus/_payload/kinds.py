"""What the type of a topic with a pool may hold. Pure; asked when a topic is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmbus._payload import arrays
from shmbus._schema.codec import Codec, pooled_codec

if TYPE_CHECKING:
    from collections.abc import Callable


def codec_with_pool(
    event_type: Any,
    codec: str,
    enc_hook: Callable[[Any], Any] | None,
    dec_hook: Callable[[type, Any], Any] | None,
) -> Codec:
    """The codec of a topic with a pool. Raises ConfigError for arrays of objects, and as `codec_for`."""

    def tried(value: Any) -> Any:
        """As a Packer's hook does, without a buffer: what it refuses, this refuses."""
        code = arrays.kind_of(type(value))
        if code == arrays.NDARRAY:
            piece, dtype = arrays.piece_of_array(value)
            return arrays.extension_of_array(0, piece[0], dtype)
        if code:
            return None
        if enc_hook is None:
            raise NotImplementedError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
        return enc_hook(value)

    wire = pooled_codec(event_type, codec, enc_hook, dec_hook, arrays.is_array_type, tried)
    arrays.require_arrays(event_type)
    return wire
