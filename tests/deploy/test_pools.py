"""Pools of processes and threads, and event loops with subprocesses, under each way to start them."""

from __future__ import annotations

import json

import pytest
from support import Processes, entries, eventually, line

METHODS = ("fork", "spawn", "forkserver")

POOL = """
import json, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import shmbus

JOBS = shmbus.Topic("jobs", int)
mine = {}


def begin(name):
    mine["bus"] = shmbus.Bus(name)
    mine["publisher"] = mine["bus"].publisher(JOBS)


def work(number):
    mine["publisher"].publish(number)
    return number


def main():
    _, name, method, kind = sys.argv
    context = multiprocessing.get_context(method)
    with shmbus.Bus(name) as bus, bus.subscriber(JOBS) as sub:
        if kind == "pool":
            with context.Pool(3, begin, [name], maxtasksperchild=7) as pool:  # terminated at its end, as ever
                done = pool.map(work, range(40), chunksize=1)
        else:
            with ProcessPoolExecutor(3, context, begin, [name]) as pool:
                done = list(pool.map(work, range(40)))
        seen = sorted(sub.receive(timeout=60) for _ in range(40))
        sub.close()
        while len(bus.stats().participants) > 1:
            with bus.subscriber(JOBS) as waiting:
                try:
                    waiting.receive(timeout=1.2)
                except shmbus.Empty:
                    pass
        print(json.dumps([seen == list(range(40)), sorted(done) == seen]), flush=True)


if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("kind", ["pool", "executor"])
@pytest.mark.parametrize("method", METHODS)
def test_process_pools(bus_name: str, processes: Processes, tmp_path: object, method: str, kind: str) -> None:
    """Workers of a pool open the bus in their initialiser beside a parent that has it open, and end in any way."""
    program = f"{tmp_path}/program.py"
    with open(program, "w", encoding="utf-8") as file:
        file.write(POOL)
    import sys

    child = processes.run([sys.executable, program, bus_name, method, kind])
    assert json.loads(line(child)) == [True, True]
    assert child.wait() == 0
    eventually(lambda: not entries(bus_name))


def threads(name: str) -> None:
    """Handles of one Bus in the threads of a pool, opened and closed there."""
    import json
    from concurrent.futures import ThreadPoolExecutor

    import shmbus

    jobs = shmbus.Topic("jobs", int)
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(jobs) as sub:

        def work(number: int) -> int:
            with bus.publisher(jobs) as publisher, bus.worker(jobs, group="pool") as worker:
                publisher.publish(number)
                taken = worker.receive(timeout=60)
                worker.ack()
            return taken

        with ThreadPoolExecutor(8) as pool:
            done = sorted(pool.map(work, range(200)))
        seen = sorted(sub.receive(timeout=60) for _ in range(200))
        print(json.dumps([done == seen == list(range(200)), len(bus.stats().participants)]), flush=True)


def test_thread_pool(bus_name: str, processes: Processes) -> None:
    """Threads of a pool open, use and close handles of one Bus side by side, and each event is worked on once."""
    child = processes.spawn(threads, bus_name)
    assert json.loads(line(child)) == [True, 1]
    assert child.wait() == 0


def loop(name: str) -> None:
    """An event loop that runs subprocesses which take part; their exit codes are its own to collect."""
    import asyncio
    import json
    import sys

    import shmbus

    jobs = shmbus.Topic("jobs", int)
    code = f"""
import shmbus, sys
with shmbus.Bus({name!r}) as bus, bus.publisher(shmbus.Topic("jobs", int)) as publisher:
    publisher.publish(int(sys.argv[1]))
sys.exit(int(sys.argv[1]))
"""

    async def main() -> None:
        with shmbus.Bus(name) as bus, bus.subscriber(jobs) as sub:
            made = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(n)) for n in range(1, 6)]
            ended = [
                shmbus.Bus(f"{name}-{n}") for n in range(3)
            ]  # supervisors that start meanwhile are not its children
            seen = sorted([await sub.areceive(timeout=60) for _ in range(5)])
            codes = [await process.wait() for process in made]
            for other in ended:
                other.close()
            print(json.dumps([seen, codes]), flush=True)

    asyncio.run(main())


def test_event_loop_with_subprocesses(bus_name: str, processes: Processes) -> None:
    """An event loop gets the events and the exit codes of its subprocesses, whatever the package starts beside them."""
    child = processes.spawn(loop, bus_name)
    assert json.loads(line(child)) == [[1, 2, 3, 4, 5]] * 2
    assert child.wait() == 0
    eventually(lambda: not entries(bus_name))
