"""multiprocessing: a bus goes to children by name, under every start method. In a fork, open it again."""

import multiprocessing
from typing import Any

import shmbus

NUMBERS = shmbus.Topic("numbers", int)
SQUARES = shmbus.Topic("squares", int)


def work(name: str) -> None:
    with shmbus.Bus.attach(name) as bus, bus.publisher(SQUARES) as out, bus.worker(NUMBERS, group="square") as numbers:
        for number in numbers:
            if number < 0:
                break
            out.publish(number * number)
        numbers.ack()


def main() -> None:
    for method in ("fork", "spawn", "forkserver"):
        context: Any = multiprocessing.get_context(method)
        with shmbus.Bus(f"roads-{method}") as bus, bus.subscriber(SQUARES) as squares:
            bus.group(NUMBERS, "square")
            worker = context.Process(target=work, args=(bus.name,))
            worker.start()
            with bus.publisher(NUMBERS) as numbers:
                numbers.publish_many([1, 2, 3, -1])
                print(method, [squares.receive(timeout=30) for _ in range(3)])
            worker.join()


if __name__ == "__main__":
    main()
