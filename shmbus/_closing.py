"""What closes at the end of a `with`. Imports nothing of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closing:
    """Closed at the end of the block that it is used in, however that ends."""

    __slots__ = ()

    def close(self) -> None:
        """Let go; the class says of what."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
