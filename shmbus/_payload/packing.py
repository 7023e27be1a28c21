"""Packing: an event and its arrays become a payload and buffers of the pool, and come back.

Pure; a Packer belongs to one publisher, an Unpacker to one subscriber or worker. What must stay true: an event that was
not published leaves its arrays as they were, and nothing in the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus import _core
from shmbus._payload import arrays
from shmbus._payload.arrays import BATCH, BUFFER, NDARRAY, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.topic import Topic

SMALL: Final = 1024
"""Bytes up to which a buffer goes into the ring with its event."""
_KNOWN: Final = 256
"""Kinds of array, by their dtypes and shapes, that a publisher remembers."""
_PLAIN: Final = (memoryview, bytes, bytearray)
"""What `msgspec.to_builtins` leaves alone."""


class Packer(_core.Packer):
    """What a publisher encodes events with: `pack` is its encoder.

    `wait` is called with an event that is encoded and whose buffers find no room in the pool; what it returns is the
    payload, `_core.NOTHING` for none.
    """

    def __init__(
        self, topic: Topic[Any], pool: _core.Pool, maximum: int, wait: Callable[[_core.Packing], object]
    ) -> None:
        self._small: Final = min(SMALL, maximum // 8)
        super().__init__(pool, self._small, maximum // 2)
        self._hook: Final = topic.enc_hook
        self._wait = wait
        encode = msgspec.msgpack.Encoder(enc_hook=self.extend).encode
        if topic.codec == "pickle":
            self._encode = self._pickle
        elif has_buffers(topic):
            self._encode = lambda event: encode(self._without_buffers(event))
        else:
            self._encode = encode

    # -- encoding

    def _pickle(self, event: Any) -> bytes:
        import pickle

        def aside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes <= self._small:
                return True  # in the pickle
            self._add(raw, buffer, raw.nbytes)
            return False

        return pickle.dumps(event, protocol=5, buffer_callback=aside)

    def _without_buffers(self, event: Any) -> Any:
        """The event as builtins, with extensions for its memoryviews, which msgspec would write itself."""
        marked: dict[int, tuple[memoryview, Any]] = {}

        def mark(value: Any) -> Any:
            made = self.extend(value)
            if not isinstance(made, msgspec.msgpack.Ext):
                return made
            view = memoryview(b"")  # which is left alone, unlike an extension
            marked[id(view)] = view, made
            return view

        return self._replaced(msgspec.to_builtins(event, builtin_types=_PLAIN, enc_hook=mark), marked)

    def _replaced(self, value: Any, marked: dict[int, tuple[memoryview, Any]]) -> Any:
        if isinstance(value, memoryview):
            if id(value) in marked:
                return marked[id(value)][1]
            return arrays.extension(BUFFER, self._add(value, value, value.nbytes))
        if isinstance(value, dict):
            return {key: self._replaced(child, marked) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(child, marked) for child in value]
        return value

    def _extend_other(self, value: Any) -> Any:
        """What msgspec does not know: arrays not seen before, and what the topic's own hook makes of the rest."""
        code = arrays.kind_of(type(value))
        if code == NDARRAY:
            self._ndarray = arrays.package("numpy").ndarray
            (source, nbytes), dtype = arrays.piece_of_array(value)
            number = self._add(source, value, nbytes)
            extension = arrays.extension_of_array(number, source, dtype)
            if type(value) is self._ndarray and len(self._known) < _KNOWN:
                self._known[number, value.dtype, value.shape] = extension
            return extension
        if code in (BATCH, TABLE):
            source, nbytes = arrays.piece_of_batch(value)
            return arrays.extension(code, self._add(source, None, nbytes))
        if self._hook is None:
            raise NotImplementedError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
        return self._hook(value)

    # -- what does not lie in C order, or is yet to be written

    @staticmethod
    def _flat(source: Any) -> bytes:
        if isinstance(source, memoryview):
            return source.tobytes()
        if isinstance(source, arrays.Stream):
            whole = bytearray(source.nbytes)
            source(whole)
            return bytes(whole)
        return bytes(source.tobytes())

    @staticmethod
    def _write(source: Any, lease: _core.Lease) -> None:
        if isinstance(source, memoryview):
            memoryview(lease)[:] = arrays.flat(source)
        elif isinstance(source, arrays.Stream):
            source(memoryview(lease))
        else:
            arrays.write_array(source, lease)


class Unpacker:
    """What a subscriber or worker decodes events with: `_core` puts the buffers of an event into `buffers` first."""

    def __init__(self, topic: Topic[Any]) -> None:
        self.buffers: Final[list[arrays.Buffer]] = []
        self._hook: Final = topic.dec_hook
        self._type: Final = topic.type
        self.decode: Final[Callable[[Any], Any]] = self._chosen(topic)

    def _chosen(self, topic: Topic[Any]) -> Callable[[Any], Any]:
        if topic.codec == "pickle":
            return self._unpickle
        known = _core.Reviver(self.buffers, NDARRAY, arrays.alike, arrays.revive, self._make)
        self._accept = known.accept
        if has_buffers(topic):
            self._tree = msgspec.msgpack.Decoder(ext_hook=known.revive).decode
            return self._convert
        decode = msgspec.msgpack.Decoder(topic.type, dec_hook=known.wants, ext_hook=known.revive).decode
        if may_keep_views(topic):
            return lambda payload: decode(bytes(payload))
        return decode

    def _make(self, expected: Any, value: Any) -> Any:
        if self._hook is not None and not arrays.is_array_type(getattr(expected, "__origin__", expected)):
            return self._hook(expected, value)
        wanted = arrays.wants(expected, value)
        if arrays.kind_of(type(value)) == NDARRAY:
            self._accept(expected, type(value), value.dtype)
        return wanted

    def _convert(self, payload: Any) -> Any:
        tree = self._tree(bytes(payload))
        return msgspec.convert(tree, self._type, dec_hook=self._make, builtin_types=_PLAIN)

    def _unpickle(self, payload: Any) -> Any:
        import pickle

        views = [memoryview(holder)[offset : offset + length] for holder, offset, length in self.buffers]
        return pickle.loads(payload, buffers=views)


def has_buffers(topic: Topic[Any]) -> bool:
    """Whether memoryviews are among the fields of a topic's type."""
    return b'"kind":"memoryview"' in topic._wire.description


def may_keep_views(topic: Topic[Any]) -> bool:
    """Whether what a decoder makes may look into the payload: msgspec.Raw, and what the topic's own hook makes."""
    return b'"kind":"raw"' in topic._wire.description or topic.dec_hook is not None
