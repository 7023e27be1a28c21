"""What a Bus offers beyond its handles: servers and clients of services, loaded by whoever uses them.

May touch: nothing; the Bus that it is a part of makes the handles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from typing import Literal

    from shmbus.bus import Bus
    from shmbus.client import Client
    from shmbus.server import Server
    from shmbus.service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Offers:
    """A part of Bus."""

    def server(
        self,
        service: Service[Req, Rep],
        *,
        name: str | None = None,
        max_deliver: int = 5,
        idle: Literal["adaptive", "park", "spin"] | None = None,
    ) -> Server[Req, Rep]:
        """A server of a service; any number of them share the calls, each call is one server's.

        A call whose server dies or closes before its reply goes to another one. One that was handed out `max_deliver`
        times fails: its caller gets CallFailed, and the request is dead-lettered on `<service>.dead`.
        Raises ConfigError, SchemaMismatchError, NoSpaceError, CapacityError.
        """
        from shmbus.server import Server

        return Server(cast("Bus", self), service, name, max_deliver, idle)

    def client(
        self, service: Service[Req, Rep], *, idle: Literal["adaptive", "park", "spin"] | None = None
    ) -> Client[Req, Rep]:
        """A client of a service, for any number of threads and tasks. It may be there before any server is.

        Raises ConfigError, SchemaMismatchError, NoSpaceError, CapacityError.
        """
        from shmbus.client import Client

        return Client(cast("Bus", self), service, idle)
