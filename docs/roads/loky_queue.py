"""joblib (loky): a queue as an argument of tasks, which multiprocessing's cannot be; results come as they are made."""

from typing import Any

from joblib import Parallel, delayed  # type: ignore[import-untyped,unused-ignore]

from shmbus.queues import Queue


def task(number: int, found: Queue[Any]) -> None:
    found.put((number, number * number))


def main() -> None:
    found: Queue[Any] = Queue()
    Parallel(n_jobs=2)(delayed(task)(number, found) for number in range(4))
    print(sorted(found.get(timeout=30) for _ in range(4)))


if __name__ == "__main__":
    main()
