"""The bridge: topics past one host, over a broker that exists.

- Bridge: carries topics out of a bus and into it, at least once
- driver: the contract of what talks to a broker; nats, redis, kafka and amqp are drivers, others are plugins
- wire: what an event is on its way: headers and payload
"""

from __future__ import annotations

from shmbus.bridge.driver import Away, Driver, Incoming, Outgoing, Setup
from shmbus.bridge.runner import Bridge

__all__ = ["Away", "Bridge", "Driver", "Incoming", "Outgoing", "Setup"]
