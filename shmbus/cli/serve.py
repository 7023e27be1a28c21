"""`serve`: metrics, health, JSON and the page over HTTP, for monitoring systems and people. Reads only."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmbus.cli import _arguments
from shmbus.cli._exit import FAILED, OK, complain
from shmbus.cli._terminate import ending_in_order
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    import argparse

_LISTEN: Final = "127.0.0.1:9464"  # the port that OpenTelemetry's Prometheus exporters have
_BACKLOG: Final = 128


def register(commands: _arguments.Commands) -> None:
    """Add `serve`."""
    serve = commands.add_parser(
        "serve",
        help="metrics, health and a live page over HTTP (extra `serve`)",
        description="Serve /metrics (Prometheus, OpenMetrics), /livez, /readyz, /healthz, /api/buses and a live page at"
        " /. It changes nothing on any bus. It ends at SIGTERM or Ctrl-C.",
    )
    serve.add_argument("buses", metavar="BUS", nargs="*", type=_arguments.bus, help="default: every bus of this user")
    serve.add_argument(
        "--listen", metavar="HOST:PORT", default=_LISTEN, help=f"default: {_LISTEN}; port 0: any free one"
    )
    serve.add_argument("--token-file", metavar="FILE", type=Path, help="ask for the bearer token that this file has")
    serve.add_argument("--certfile", metavar="FILE", type=Path, help="serve HTTPS with this certificate chain (PEM)")
    serve.add_argument("--keyfile", metavar="FILE", type=Path, help="and this key")
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until somebody ends it."""
    try:
        import uvicorn

        from shmbus.observe import web
    except ImportError as error:
        return complain(f"serve needs the extra `serve`: pip install 'shmbus[serve]' ({error})", FAILED)
    token = _token(arguments.token_file)
    if (arguments.certfile is None) != (arguments.keyfile is None):
        raise ConfigError("--certfile and --keyfile go together")
    listener = _listen(arguments.listen)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    local = host.startswith("127.") or host == "::1"
    if not local and token is None:
        complain(f"whoever reaches {shown}:{port} may look at every bus served: --token-file asks for a token")
    hosts = (*web.LOOPBACK, shown) if local and token is None else ()
    config = uvicorn.Config(
        web.application(arguments.buses, token=token, hosts=hosts),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        ssl_certfile=arguments.certfile,
        ssl_keyfile=arguments.keyfile,
        timeout_graceful_shutdown=2,
    )
    if arguments.certfile is not None:
        config.load()  # says at once what is wrong with the files
    scheme = "http" if arguments.certfile is None else "https"
    print(f"serving on {scheme}://{shown}:{port}/", flush=True)
    try:
        with ending_in_order():
            uvicorn.Server(config).run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):  # uvicorn has shut down, and passes the signal on
        pass
    finally:
        listener.close()
    return OK


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    token = path.read_text(encoding="utf-8").strip()
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file must hold one word: {path}")
    return token


def _listen(address: str) -> socket.socket:
    """A listening socket. Raises ConfigError for what is no address, OSError for one that cannot be had."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--listen takes HOST:PORT, not {address!r}")
    try:
        found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"--listen {address}: {error.strerror}") from None
    family, kind, protocol, _, place = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    return listener
