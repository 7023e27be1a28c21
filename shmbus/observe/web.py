"""The server of `shmbus serve`: metrics, health, JSON and the page. Reads only.

Needs the extra `serve` (starlette, uvicorn, prometheus_client). May touch: nothing; it looks through `inspect`.

    /metrics                  Prometheus text, or OpenMetrics where it is asked for
    /livez                    200 while the server runs
    /readyz, /healthz         200, or 503 while something is wrong that stops events, and why
    /api/buses                what `shmbus stat --json` prints
    /api/buses/NAME           the same of one bus, and its problems, losses, dead letters and histories
    /                         the page

With a token, `Authorization: Bearer TOKEN` is asked for wherever names or figures are told; who has none still gets
the status of `/readyz` and `/healthz`, for probes, and the page, which asks for it. Without one a server on loopback
answers to loopback's names alone, so no web page of elsewhere that points its own name there can read it.
"""

from __future__ import annotations

import hmac
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from shmbus.errors import BusNotFoundError, ShmbusError
from shmbus.observe import metrics
from shmbus.observe.watcher import FRESH, Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def application(buses: Sequence[str] = (), *, token: str | None = None, hosts: Sequence[str] = ()) -> ASGIApp:
    """The ASGI application for the named buses, or for all of this user's.

    `hosts`: the only names that it answers to; () for any.
    """
    watcher = Watcher(buses)
    collector = metrics.registry(buses)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(watcher.start)
        yield
        await run_in_threadpool(watcher.close)

    pages = _Pages(watcher, collector, token)
    routes = [
        Route("/metrics", pages.metrics),
        Route("/livez", pages.live),
        Route("/readyz", pages.health),
        Route("/healthz", pages.health),
        Route("/api/buses", pages.buses),
        Route("/api/buses/{bus}", pages.bus),
        Mount("/", StaticFiles(packages=[("shmbus.observe", "static")], html=True)),
    ]
    return _Guarded(Starlette(routes=routes, lifespan=lifespan), tuple(hosts))


class _Guarded:
    """Answers to the right names only, and tells browsers to trust nobody else."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts and name not in self._hosts:
            refused = PlainTextResponse(f"this server does not answer to the name {name!r}\n", 421)
            await refused(scope, receive, headed)
            return
        await self._app(scope, receive, headed)


class _Pages:
    """The answers."""

    def __init__(self, watcher: Watcher, collector: Any, token: str | None) -> None:
        self._watcher = watcher
        self._collector = collector
        self._token = token

    def _admitted(self, request: Request) -> bool:
        if self._token is None:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode())

    async def metrics(self, request: Request) -> Response:
        """What `metrics.BusCollector` says, in the format that the `Accept` header asks for."""
        if not self._admitted(request):
            return _refused()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await run_in_threadpool(encode, self._collector)
        return Response(body, headers={"content-type": content_type})

    async def live(self, request: Request) -> Response:
        """The server runs."""
        return _json({"status": "ok"})

    async def health(self, request: Request) -> Response:
        """200 or 503, and why; by a look of now."""
        await run_in_threadpool(self._watcher.look, FRESH)
        found = self._watcher.problems()
        critical = any(problem.severity == "critical" for problem in found)
        answer: dict[str, Any] = {"status": "failing" if critical else "ok"}
        if self._admitted(request):
            answer["buses"] = self._watcher.names()
            answer["problems"] = found
        return _json(answer, 503 if critical else 200)

    async def buses(self, request: Request) -> Response:
        """The books of all buses, with rates."""
        return _json(self._watcher.stats()) if self._admitted(request) else _refused()

    async def bus(self, request: Request) -> Response:
        """All that there is to show of one bus."""
        if not self._admitted(request):
            return _refused()
        name = request.path_params["bus"]
        try:
            return _json(await run_in_threadpool(self._watcher.view, name))
        except BusNotFoundError as error:
            return _json({"error": str(error)}, 404)
        except (ShmbusError, OSError) as error:
            return _json({"error": str(error)}, 503)


def _refused() -> Response:
    response = _json({"error": "a token is asked for: Authorization: Bearer TOKEN"}, 401)
    response.headers["www-authenticate"] = "Bearer"
    return response


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value, enc_hook=list), status, media_type="application/json")
