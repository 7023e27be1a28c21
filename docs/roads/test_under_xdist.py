"""pytest-xdist: a bus for each test, named after the worker, so that tests beside each other do not meet."""

from collections.abc import Iterator

import pytest

import shmbus

ORDERS = shmbus.Topic("orders", int)


@pytest.fixture
def bus(request: pytest.FixtureRequest) -> Iterator[shmbus.Bus]:
    worker = getattr(request.config, "workerinput", {}).get("workerid", "main")
    with shmbus.Bus(f"roads-{worker}-{abs(hash(request.node.nodeid)):x}") as bus:
        yield bus


@pytest.mark.parametrize("number", [1, 2, 3])
def test_orders(bus: shmbus.Bus, number: int) -> None:
    """What is published is received."""
    with bus.subscriber(ORDERS) as orders, bus.publisher(ORDERS) as pub:
        pub.publish(number)
        assert orders.receive(timeout=30) == number
