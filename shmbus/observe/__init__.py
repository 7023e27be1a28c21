"""Seen from outside: metrics, the web page, traces. A wing: `import shmbus` loads nothing of it.

General layout:

    metrics     one collector over the books of all buses; Prometheus and OpenMetrics text (extra `serve`)
    health      what is wrong with a bus, in words
    web         the server of metrics, health, JSON and the page (extra `serve`)
    auditing    the audit log in a file or the system log: `audit_to`
    tracing     OpenTelemetry spans around publish, receive and settle (extra `otel`): `instrument`; its parts are
                `sending`, `receiving`, `drops` and `telemetry`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmbus.observe.auditing import audit_to
    from shmbus.observe.tracing import instrument

__all__ = ["audit_to", "instrument"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Fetch what is asked for at its first use: `instrument` needs an extra."""
        if name == "audit_to":
            from shmbus.observe.auditing import audit_to

            globals()[name] = audit_to
            return audit_to
        if name != "instrument":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from shmbus.observe.tracing import instrument
        except ImportError as error:
            raise ImportError(f"tracing needs the extra `otel`: pip install 'shmbus[otel]' ({error})") from error
        globals()[name] = instrument
        return instrument
