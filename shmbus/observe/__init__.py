"""Seen from outside: metrics, the web page, traces. A wing: `import shmbus` loads nothing of it.

General layout:

    metrics     one collector over the books of all buses; Prometheus and OpenMetrics text (extra `serve`)
    health      what is wrong with a bus, in words
    web         the server of metrics, health, JSON and the page (extra `serve`)
    tracing     OpenTelemetry spans around publish, receive and settle (extra `otel`): `instrument`
"""

from __future__ import annotations
