"""ProcessPoolExecutor: each process opens the bus once, in the initialiser; tasks publish through what it keeps."""

import atexit
from concurrent.futures import ProcessPoolExecutor

import shmbus

PROGRESS = shmbus.Topic("progress", tuple[int, int])
kept: dict[str, shmbus.Publisher[tuple[int, int]]] = {}


def start(name: str) -> None:
    bus = shmbus.Bus.attach(name)
    atexit.register(bus.close)
    kept["progress"] = bus.publisher(PROGRESS)


def task(number: int) -> int:
    kept["progress"].publish((number, 100))
    return number * number


def main() -> None:
    with shmbus.Bus("roads-pool") as bus, bus.subscriber(PROGRESS) as progress:
        with ProcessPoolExecutor(2, initializer=start, initargs=(bus.name,)) as pool:
            print(list(pool.map(task, range(4))))
        print(sorted(progress.receive(timeout=30) for _ in range(4)))


if __name__ == "__main__":
    main()
