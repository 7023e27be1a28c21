"""Packing: an event and its arrays become a payload and buffers of the pool, and come back.

Pure; a Packer belongs to one publisher, an Unpacker to one subscriber or worker. What must stay true: an event that was
not published leaves its arrays as they were, and nothing in the pool.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from shmbus import _core
from shmbus._payload import arrays
from shmbus._payload.arrays import BATCH, BUFFER, NDARRAY, TABLE, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmbus.topic import Topic

SMALL: Final = 1024
"""Bytes up to which a buffer goes into the ring with its event."""
_KNOWN: Final = 256
"""Kinds of array, by their dtypes and shapes, that a publisher remembers."""
_PLAIN: Final = (memoryview, bytes, bytearray)
"""What `msgspec.to_builtins` leaves alone."""


Sealed: TypeAlias = tuple[_core.Lease, list[Any]]
"""A loan that was published, and the arrays and memoryviews of it that became read-only for that."""


def unseal(sealed: Iterable[Sealed]) -> None:
    """The event was not published after all."""
    for lease, views in sealed:
        lease.unseal(None)
        for view in views:
            if isinstance(view, memoryview):
                lease.unseal(view)
            else:
                view.flags.writeable = True


Packing: TypeAlias = tuple[bytes, list[Piece], "dict[int, tuple[_core.Lease, int]]"]
"""An event, encoded; its buffers, which have yet to find room; by number, those that lie in a loan: it, and where."""


class Packer:
    """What a publisher encodes events with."""

    def __init__(self, topic: Topic[Any], pool: _core.Pool, maximum: int) -> None:
        self._pool: Final = pool
        self._small: Final = min(SMALL, maximum // 8)
        self._spill: Final = maximum // 2
        self._hook: Final = topic.enc_hook
        encode = msgspec.msgpack.Encoder(enc_hook=self._extend).encode
        self._encode: Callable[[Any], bytes]
        if topic.codec == "pickle":
            self._encode = self._pickle
        elif has_buffers(topic):
            self._encode = lambda event: encode(self._without_buffers(event))
        else:
            self._encode = encode
        self._lock: Final = threading.RLock()
        self._pieces: list[Piece] = []
        self._loans: dict[int, tuple[_core.Lease, int]] = {}
        self._ndarray: Any = None  # until an array is seen: NumPy may not be there
        self._arrays: dict[tuple[int, Any, tuple[int, ...]], tuple[msgspec.msgpack.Ext, int]] = {}

    # -- encoding

    def encode(self, event: Any) -> Packing:
        """Encode an event; its arrays are looked at, and not copied yet. Raises what a codec raises."""
        with self._lock:
            before = self._pieces, self._loans
            pieces: list[Piece] = []
            loans: dict[int, tuple[_core.Lease, int]] = {}
            self._pieces, self._loans = pieces, loans
            try:
                return self._encode(event), pieces, loans
            finally:
                self._pieces, self._loans = before

    def _pickle(self, event: Any) -> bytes:
        import pickle

        def aside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes <= self._small:
                return True  # in the pickle
            self._add((raw, raw.nbytes), buffer)
            return False

        return pickle.dumps(event, protocol=5, buffer_callback=aside)

    def _without_buffers(self, event: Any) -> Any:
        """The event as builtins, with extensions for its memoryviews, which msgspec would write itself."""
        marked: dict[int, tuple[memoryview, Any]] = {}

        def mark(value: Any) -> Any:
            made = self._extend(value)
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
            return arrays.extension(BUFFER, self._add((value, value.nbytes), value))
        if isinstance(value, dict):
            return {key: self._replaced(child, marked) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(child, marked) for child in value]
        return value

    def _extend(self, value: Any) -> Any:
        """What msgspec does not know: arrays, and what the topic's own hook makes of the rest."""
        if type(value) is not self._ndarray:
            return self._extend_other(value)
        pieces = self._pieces
        known = self._arrays.get((len(pieces), value.dtype, value.shape))
        if known is None:
            return self._extend_other(value)
        extension, nbytes = known
        if nbytes > self._small and (base := value.base) is not None:
            self._find_loan(len(pieces), base, value)
        pieces.append((value, nbytes))
        return extension

    def _extend_other(self, value: Any) -> Any:
        code = arrays.kind_of(type(value))
        if code == NDARRAY:
            self._ndarray = arrays.package("numpy").ndarray
            key = len(self._pieces), value.dtype, value.shape
            piece, dtype = arrays.piece_of_array(value)
            extension = arrays.extension_of_array(self._add(piece, value), piece[0], dtype)
            if type(value) is self._ndarray and len(self._arrays) < _KNOWN:
                self._arrays[key] = extension, piece[1]
            return extension
        if code in (BATCH, TABLE):
            return arrays.extension(code, self._add(arrays.piece_of_batch(value), None))
        if self._hook is None:
            raise NotImplementedError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
        return self._hook(value)

    def _add(self, piece: Piece, view: Any) -> int:
        number = len(self._pieces)
        self._pieces.append(piece)
        source, nbytes = piece
        if nbytes > self._small:
            self._find_loan(number, view, source)
        return number

    def _find_loan(self, number: int, view: Any, source: Any) -> None:
        lease = self._loan_of(view)
        if lease is not None and (offset := lease.offset(source)) >= 0:
            self._loans[number] = lease, offset

    def _loan_of(self, view: Any) -> _core.Lease | None:
        """The loan that an array or memoryview lies in; None for any other."""
        base = view
        for _ in range(64):  # views of views; NumPy keeps that short
            if type(base) is _core.Lease:
                return base if base.pool is self._pool else None
            base = getattr(base, "obj", None) if isinstance(base, memoryview) else getattr(base, "base", None)
            if base is None:
                return None
        return None

    # -- placing

    def place(self, packing: Packing) -> bytes | _core.Parcel | int:
        """The payload, with its buffers in the pool; or how many bytes more it wants, and nothing has changed."""
        body, pieces, loans = packing
        if not pieces and len(body) <= self._spill:
            return body
        parts: list[Any] = []
        laid: list[tuple[Any, _core.Lease]] = []
        for number, piece in enumerate(pieces):
            source, nbytes = piece
            if number in loans:
                parts.append((*loans[number], nbytes))
            elif nbytes <= self._small:
                parts.append(_small_bytes(piece))
            elif source.flags.c_contiguous if type(source) is self._ndarray else _is_flat(source):
                parts.append(source)
            else:
                lease = self._pool.lease(nbytes)
                if lease is None:
                    return self._wanted(packing)
                laid.append((source, lease))
                parts.append((lease, 0, nbytes))
        rest: bytes | None = body
        if len(body) > self._spill:
            parts.append(memoryview(body))
            rest = None
        parcel = self._pool.pack(tuple(parts), rest)
        if parcel is None:
            return self._wanted(packing)
        for source, lease in laid:
            _write(source, lease)
        return parcel

    def _wanted(self, packing: Packing) -> int:
        """Bytes of the pool, in whole blocks, that an event takes beside its loans."""
        body, pieces, loans = packing
        sizes = [nbytes for at, (_, nbytes) in enumerate(pieces) if at not in loans and nbytes > self._small]
        if len(body) > self._spill:
            sizes.append(len(body))
        return sum(-(-size // _core.POOL_BLOCK) * _core.POOL_BLOCK for size in sizes)

    @staticmethod
    def seal(packing: Packing) -> list[Sealed]:
        """Make the loans of an event read-only, as it is about to be published."""
        _, pieces, loans = packing
        sealed = []
        for number, (lease, _) in loans.items():
            views: list[Any] = []
            base: Any = pieces[number][0]
            while base is not None and type(base) is not _core.Lease:
                if isinstance(base, memoryview):
                    if not base.readonly:
                        lease.seal(base)
                        views.append(base)
                    base = base.obj
                else:
                    if base.flags.writeable:
                        base.setflags(False)  # a seventh of what `flags.writeable = False` takes
                        views.append(base)
                    base = base.base
            lease.seal(None)
            sealed.append((lease, views))
        return sealed


def _is_flat(source: Any) -> bool:
    """Whether the bytes of an array or memoryview lie as they will in the pool."""
    if isinstance(source, memoryview):
        return source.c_contiguous
    return not callable(source) and bool(source.flags.c_contiguous)


def _small_bytes(piece: Piece) -> bytes:
    source, nbytes = piece
    if callable(source):
        whole = bytearray(nbytes)
        source(whole)
        return bytes(whole)
    return bytes(source.tobytes())


def _write(source: Any, lease: _core.Lease) -> None:
    if isinstance(source, memoryview):
        memoryview(lease)[:] = arrays.flat(source)
    elif callable(source):
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
        revive = partial(arrays.revive, buffers=self.buffers)
        if has_buffers(topic):
            self._tree = msgspec.msgpack.Decoder(ext_hook=revive).decode
            return self._convert
        make = arrays.wants if self._hook is None else self._make
        decode = msgspec.msgpack.Decoder(topic.type, dec_hook=make, ext_hook=revive).decode
        if may_keep_views(topic):
            return lambda payload: decode(bytes(payload))
        return decode

    def _make(self, expected: Any, value: Any) -> Any:
        if self._hook is not None and not arrays.is_array_type(getattr(expected, "__origin__", expected)):
            return self._hook(expected, value)
        return arrays.wants(expected, value)

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
