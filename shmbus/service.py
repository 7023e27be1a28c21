"""Service: the name, request type and reply type of calls; a description that two processes compare, and opens nothing.

Requests are events of the topic that has the service's name, work of its group `SERVERS`: at least once, redelivered
when a server dies, on the books and in `stat` as any work is. Replies are events of a topic that each client has for
itself, `<service>/<token>`, made when it opens and forgotten when it leaves or dies. Servers open a publisher there
with their first reply to it.

Why a topic a client, and not a group of one reply topic: a group gets a ring from every publisher of its topic, used or
not, and there are 64 of them; a topic of one's own costs a ring for each server that ever replied, and its books,
latencies and stalls are the caller's. Nobody else can be handed a reply, for nobody else is in that topic.

Must stay true: a service that could be constructed is valid, whatever path it came by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeVar, Union, final

import msgspec

from shmbus.errors import ConfigError
from shmbus.topic import Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import TypeForm  # the checkers bring it along; unlike type[T] it takes unions and Annotated

Req = TypeVar("Req")
Rep = TypeVar("Rep")

SERVERS: Final = "servers"
"""The group that requests are the work of."""
HEADER: Final = "shmbus.call"
"""In the headers of a request: [token of the caller, number of the call, deadline]; the deadline in ns on the host's
monotonic clock (`_core.host_ns`), 0 for none."""
REQUEST_CAPACITY: Final = 1 << 20
REPLY_CAPACITY: Final = 1 << 18  # a ring for each pair of a server and a client that talk; replies up to 64 KiB
TOKEN: Final = 10
"""Characters of a client's token: random, so that none is ever used twice on a bus."""
_NAME_MAX: Final = 48 - TOKEN - 1


class Answer(msgspec.Struct, Generic[Rep], tag="r", array_like=True, frozen=True):
    """A reply, on its way to the call that it is for."""

    call: int
    reply: Rep


class Failure(msgspec.Struct, tag="f", array_like=True, frozen=True):
    """Word that there will be no reply. Call 0 is nobody's: it only wakes the client."""

    call: int
    reason: str
    deaths: tuple[str, ...] = ()


@final
class Service(Generic[Req, Rep]):
    """A named service: what a request is, and what the reply to it. Immutable, comparable, picklable as a Topic is.

    `request` and `reply` are types as a Topic takes them. `capacity` is the size in bytes of each client's ring of
    requests, `reply_capacity` that of the ring from a server to a client; an event takes a quarter of its ring at most.
    Replies are validated before they leave the server (`validate` of Topic): what no caller would get is the server's
    error. With `codec="pickle"` they are not. `enc_hook` and `dec_hook` are msgspec's.

    Raises `ConfigError` with the offending value; the name leaves room for that of the reply topics: 37 characters.

        PRICE = Service("price", Quote, Price)              # Service[Quote, Price]
    """

    if TYPE_CHECKING:  # read-only, as what lies in the slots is

        @property
        def name(self) -> str:
            """What every process knows it by, and its topic of requests."""
            ...

        @property
        def request(self) -> TypeForm[Req]:
            """What is asked."""
            ...

        @property
        def reply(self) -> TypeForm[Rep]:
            """What is answered."""
            ...

        @property
        def requests(self) -> Topic[Req]:
            """The topic of requests."""
            ...

        @property
        def reply_capacity(self) -> int:
            """Bytes of a ring of replies."""
            ...

        _options: dict[str, Any]
    else:
        __slots__ = ("__weakref__", "_options", "name", "reply", "reply_capacity", "request", "requests")

    def __init__(
        self,
        name: str,
        request: TypeForm[Req],
        reply: TypeForm[Rep],
        *,
        capacity: int = REQUEST_CAPACITY,
        reply_capacity: int = REPLY_CAPACITY,
        codec: Literal["msgpack", "json", "pickle"] = "msgpack",
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> None:
        options = {"codec": codec, "enc_hook": enc_hook, "dec_hook": dec_hook}
        requests = Topic[Any](name, request, capacity=capacity, **options)  # type: ignore[arg-type]
        if len(name) > _NAME_MAX:
            raise ConfigError(
                f"a service's name has at most {_NAME_MAX} characters, for its reply topics: name={name!r}"
            )
        for field, value in (
            ("name", name),
            ("request", request),
            ("reply", reply),
            ("requests", requests),
            ("reply_capacity", reply_capacity),
            ("_options", options),
        ):
            object.__setattr__(self, field, value)
        self.replies("x" * TOKEN)  # raises for a type or a capacity that cannot be

    def replies(self, token: str) -> Topic[Answer[Rep] | Failure]:
        """The topic of replies of the client with that token: the one place where it is made."""
        form: Any = Union[Answer[self.reply], Failure]  # type: ignore[name-defined]  # noqa: UP007 -- at run time
        return Topic(
            f"{self.name}/{token}",
            form,
            capacity=self.reply_capacity,
            validate=self._options["codec"] != "pickle",
            **self._options,
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a service is immutable: {name}={value!r}")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Service) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.reply_capacity))

    def __repr__(self) -> str:
        shown = [getattr(kind, "__qualname__", None) or repr(kind) for kind in (self.request, self.reply)]
        return f"Service({self.name!r}, {', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._values()

    def _values(self) -> tuple[Any, ...]:
        return self.name, self.request, self.reply, self.requests.capacity, self.reply_capacity, self._options


def _rebuild(name: str, request: Any, reply: Any, capacity: int, reply_capacity: int, options: Any) -> Any:
    return Service(name, request, reply, capacity=capacity, reply_capacity=reply_capacity, **options)


def check_service(service: object) -> None:
    """Raise ConfigError unless it is one."""
    if not isinstance(service, Service):
        raise ConfigError(f"expected a Service: service={service!r}")
