"""logging: every process logs into one queue, one listener writes. One that is killed while it logs stops nobody."""

import logging
import logging.handlers
import multiprocessing
import sys
from typing import Any

from shmbus.queues import Queue


def configure(queue: Queue[Any]) -> None:
    root = logging.getLogger()
    root.handlers = [logging.handlers.QueueHandler(queue)]
    root.setLevel(logging.INFO)


def work(queue: Queue[Any], number: int) -> None:
    configure(queue)
    logging.getLogger("work").info("worker %d is at work", number)


def main() -> None:
    queue: Queue[Any] = Queue()
    listener = logging.handlers.QueueListener(queue, logging.StreamHandler(sys.stdout))
    listener.start()
    workers = [multiprocessing.Process(target=work, args=(queue, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    listener.stop()


if __name__ == "__main__":
    main()
