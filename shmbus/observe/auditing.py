"""Where the audit log goes: a file of JSON lines, the system log, or both.

May touch: the logger `shmbus.audit`, the file, the socket of the system log.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._ledger.audit import NAME
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

DEV_LOG: Final = "/dev/log"
_PATIENCE: Final = 0.1  # seconds that a record waits for a system log that reads none


class _Lines(logging.Formatter):
    """A record as one line of JSON: `time_ns`, what `record.audit` has, and the message."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {"time_ns": int(record.created * 1e9), **getattr(record, "audit", {})}
        return msgspec.json.encode({**told, "message": record.getMessage()}).decode()


class _SystemLog(logging.handlers.SysLogHandler):
    """Waits for nobody for long: a system log that is stopped costs its records."""

    def createSocket(self) -> None:
        super().createSocket()
        made: socket.socket = self.socket  # type: ignore[attr-defined, unused-ignore]
        if made.fileno() >= 0:  # it is there
            made.settimeout(_PATIENCE)


def audit_to(*, file: str | Path | None = None, syslog: str | bool = False) -> list[logging.Handler]:
    """Write the audit log of this process to a file, the system log, or both; returns the handlers, to be removed by
    `logging.getLogger("shmbus.audit").removeHandler`.

    `file` gets a line of JSON a record, in one write, so many processes may share it; one that was rotated is opened
    anew. `syslog` is True for /dev/log, the path of another socket, or HOST:PORT for UDP; records come from the
    facility `daemon`. Raises ConfigError, OSError.
    """
    handlers: list[logging.Handler] = []
    if file is not None:
        lines = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
        lines.setFormatter(_Lines())
        handlers.append(lines)
    if syslog:
        system = _system_log(DEV_LOG if syslog is True else syslog)
        system.ident = f"shmbus[{os.getpid()}]: "
        system.setFormatter(logging.Formatter("%(message)s"))
        handlers.append(system)
    logger = logging.getLogger(NAME)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


def _system_log(address: str) -> _SystemLog:
    host, colon, port = address.rpartition(":")
    daemon = logging.handlers.SysLogHandler.LOG_DAEMON
    if address.startswith("/"):
        if not stat.S_ISSOCK(os.stat(address).st_mode):
            raise ConfigError(f"no socket of a system log: syslog={address!r}")
        return _SystemLog(address, daemon)
    if not colon or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigError(f"syslog is True, the path of a socket, or HOST:PORT: syslog={address!r}")
    return _SystemLog((host, int(port)), daemon, socktype=socket.SOCK_DGRAM)
