"""Packing: an event and its arrays become a payload and buffers of the pool, and come back.

Pure; a Packer belongs to one publisher, an Unpacker to one subscriber or worker. What must stay true: an event that was
not published leaves its arrays as they were, and nothing in the pool.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from shmbus import _core
from shmbus._payload import arrays
from shmbus._payload.arrays import BATCH, BUFFER, NDARRAY, TABLE, Piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.topic import Topic

SMALL: Final = 1024
"""Bytes up to which a buffer goes into the ring with its event."""
_KNOWN: Final = 256
"""Kinds of array, by their dtypes and shapes, that a publisher remembers."""
_PLAIN: Final = (memoryview, bytes, bytearray)
"""What `msgspec.to_builtins` leaves alone."""


class Sealed(NamedTuple):
    """An array or memoryview that became read-only because it was published."""

    lease: _core.Lease
    views: list[Any]

    def undo(self) -> None:
        """The event was not published after all."""
        self.lease.unseal(None)
        for view in self.views:
            if isinstance(view, memoryview):
                self.lease.unseal(view)
            else:
                view.flags.writeable = True


class Packing:
    """One event, encoded; its buffers have yet to find room."""

    __slots__ = ("body", "loans", "pieces")

    def __init__(self, body: bytes, pieces: list[Piece], loans: dict[int, tuple[_core.Lease, int]]) -> None:
        self.body = body
        self.pieces = pieces
        self.loans = loans

    def needs(self, small: int) -> list[int]:
        """Bytes of each buffer that is to be copied into the pool."""
        return [piece.nbytes for at, piece in enumerate(self.pieces) if at not in self.loans and piece.nbytes > small]


class Packer:
    """What a publisher encodes events with."""

    def __init__(self, topic: Topic[Any], pool: _core.Pool, maximum: int) -> None:
        self._pool: Final = pool
        self._small: Final = min(SMALL, maximum // 8)
        self._spill: Final = maximum // 2
        self._hook: Final = topic.enc_hook
        self._pickled: Final = topic.codec == "pickle"
        self._flat: Final = has_buffers(topic)
        self._encode: Final = msgspec.msgpack.Encoder(enc_hook=self._extend).encode
        self._lock: Final = threading.RLock()
        self._pieces: list[Piece] = []
        self._loans: dict[int, tuple[_core.Lease, int]] = {}
        self._ndarray: Any = None  # until an array is seen: NumPy may not be there
        self._arrays: dict[tuple[int, Any, tuple[int, ...]], msgspec.msgpack.Ext] = {}

    # -- encoding

    def encode(self, event: Any) -> Packing:
        """Encode an event; its arrays are looked at, and not copied yet. Raises what a codec raises."""
        with self._lock:
            before = self._pieces, self._loans
            self._pieces, self._loans = [], {}
            try:
                if self._pickled:
                    body = self._pickle(event)
                elif self._flat:
                    body = self._encode(self._without_buffers(event))
                else:
                    body = self._encode(event)
                return Packing(body, self._pieces, self._loans)
            finally:
                self._pieces, self._loans = before

    def _pickle(self, event: Any) -> bytes:
        import pickle

        def aside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes <= self._small:
                return True  # in the pickle
            self._add(Piece(raw, raw.nbytes), buffer)
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
            return arrays.extension(BUFFER, self._add(_piece_of_view(value), value))
        if isinstance(value, dict):
            return {key: self._replaced(child, marked) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(child, marked) for child in value]
        return value

    def _extend(self, value: Any) -> Any:
        """What msgspec does not know: arrays, and what the topic's own hook makes of the rest."""
        if type(value) is self._ndarray:
            return self._known_array(value)
        code = arrays.kind_of(type(value))
        if code == NDARRAY:
            self._ndarray = arrays.package("numpy").ndarray
            piece, dtype = arrays.piece_of_array(value)
            return arrays.extension_of_array(self._add(piece, value), piece.source, dtype)
        if code in (BATCH, TABLE):
            return arrays.extension(code, self._add(arrays.piece_of_batch(value), None))
        if self._hook is None:
            raise NotImplementedError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
        return self._hook(value)

    def _known_array(self, array: Any) -> msgspec.msgpack.Ext:
        """The same for an array; what says so of those that are alike is made once."""
        key = len(self._pieces), array.dtype, array.shape
        found = self._arrays.get(key)
        if found is None:
            piece, dtype = arrays.piece_of_array(array)
            found = arrays.extension_of_array(key[0], piece.source, dtype)
            if len(self._arrays) < _KNOWN:
                self._arrays[key] = found
        self._add(Piece(array, array.nbytes), array)
        return found

    def _add(self, piece: Piece, view: Any) -> int:
        number = len(self._pieces)
        self._pieces.append(piece)
        if piece.nbytes > self._small and (type(view) is not self._ndarray or view.base is not None):
            lease = self._loan_of(view)
            if lease is not None and (offset := lease.offset(piece.source)) >= 0:
                self._loans[number] = lease, offset
        return number

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
        body, pieces = packing.body, packing.pieces
        if not pieces and len(body) <= self._spill:
            return body
        parts: list[Any] = []
        laid: list[tuple[Piece, _core.Lease]] = []
        for number, piece in enumerate(pieces):
            if number in packing.loans:
                parts.append((*packing.loans[number], piece.nbytes))
            elif piece.nbytes <= self._small:
                parts.append(_small_bytes(piece))
            elif _is_flat(piece.source):
                parts.append(piece.source)
            else:
                lease = self._pool.lease(piece.nbytes)
                if lease is None:
                    return self._wanted(packing)
                laid.append((piece, lease))
                parts.append((lease, 0, piece.nbytes))
        rest: bytes | None = body
        if len(body) > self._spill:
            parts.append(memoryview(body))
            rest = None
        parcel = self._pool.pack(tuple(parts), rest)
        if parcel is None:
            return self._wanted(packing)
        for piece, lease in laid:
            _write(piece, lease)
        return parcel

    def _wanted(self, packing: Packing) -> int:
        """Bytes of the pool, in whole blocks, that an event takes beside its loans."""
        body = [len(packing.body)] if len(packing.body) > self._spill else []
        return sum(-(-size // _core.POOL_BLOCK) * _core.POOL_BLOCK for size in packing.needs(self._small) + body)

    @staticmethod
    def seal(packing: Packing) -> list[Sealed]:
        """Make the loans of an event read-only, as it is about to be published."""
        sealed = []
        for number, (lease, _) in packing.loans.items():
            views: list[Any] = []
            base: Any = packing.pieces[number].source
            while base is not None and type(base) is not _core.Lease:
                if isinstance(base, memoryview):
                    if not base.readonly:
                        lease.seal(base)
                        views.append(base)
                    base = base.obj
                else:
                    flags = base.flags
                    if flags.writeable:
                        flags.writeable = False
                        views.append(base)
                    base = base.base
            lease.seal(None)
            sealed.append(Sealed(lease, views))
        return sealed


def _piece_of_view(view: memoryview) -> Piece:
    return Piece(view, view.nbytes)


def _is_flat(source: Any) -> bool:
    """Whether the bytes of an array or memoryview lie as they will in the pool."""
    if isinstance(source, memoryview):
        return source.c_contiguous
    return not callable(source) and bool(source.flags.c_contiguous)


def _small_bytes(piece: Piece) -> bytes:
    if callable(piece.source):
        whole = bytearray(piece.nbytes)
        piece.source(whole)
        return bytes(whole)
    return bytes(piece.source.tobytes())


def _write(piece: Piece, lease: _core.Lease) -> None:
    source = piece.source
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
        if has_buffers(topic):
            self._tree = msgspec.msgpack.Decoder(ext_hook=self._revive).decode
            return self._convert
        decode = msgspec.msgpack.Decoder(topic.type, dec_hook=self._make, ext_hook=self._revive).decode
        if may_keep_views(topic):
            return lambda payload: decode(bytes(payload))
        return decode

    def _revive(self, code: int, data: memoryview) -> Any:
        return arrays.revive(code, data, self.buffers)

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
