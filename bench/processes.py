"""One run: one workload with one peer, every end in a process of its own.

May touch: processes that it starts, and it ends them all. The clock runs from the first send to the last receive; a
barrier holds the sender until every receiver is ready, and all until the sender is.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final

from bench import peers, workloads
from bench.contract import BenchError, Plan, Received, Sent
from bench.event import checksum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

PATIENCE: Final = 300.0
"""Seconds after which a run has failed."""
_JOIN: Final = 10.0
_CONTEXT: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Outcome:
    """What the processes of one run measured."""

    sent: Sent
    received: tuple[Received, ...]
    connected: bool

    @property
    def seconds(self) -> float:
        """From before the first send to after the last receive of the slowest receiver.

        Where the ends never meet, the time of the slowest end.
        """
        if not self.connected:
            spans = [self.sent.last_ns - self.sent.first_ns, *(r.last_ns - r.first_ns for r in self.received)]
            return max(spans) / 1e9
        return (max(end.last_ns for end in self.received) - self.sent.first_ns) / 1e9


def run(plan: Plan, patience: float = PATIENCE) -> Outcome:
    """Run a plan once. Raises BenchError with what a process said when it failed."""
    peer = peers.load(plan.peer)
    with peer.wire(plan) as wiring, ExitStack() as stack:
        sent, *received = _reports(_start(plan, wiring, stack), time.monotonic() + patience)
    outcome = Outcome(sent, tuple(received), peer.CONNECTED)
    _check(plan, outcome)
    return outcome


def _start(plan: Plan, wiring: Any, stack: ExitStack) -> list[Connection]:
    """Start the sender and all receivers; the stack ends them."""
    barrier = _CONTEXT.Barrier(plan.receivers + 1)
    ends: list[int | None] = [None, *range(plan.receivers)]
    return [stack.enter_context(_process(plan, wiring, end, barrier)) for end in ends]


@contextmanager
def _process(plan: Plan, wiring: Any, index: int | None, barrier: Barrier) -> Iterator[Connection]:
    """One end, and the pipe that its report comes from; killed at once when the run has failed."""
    pipe, its_pipe = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(plan, wiring, index, barrier, its_pipe), daemon=True)
    process.start()
    its_pipe.close()
    try:
        yield pipe
        process.join(_JOIN)
    finally:
        process.kill()
        process.join()
        process.close()
        pipe.close()


def _reports(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    """What each process reports, in their order. The first failure is everybody's."""
    reports: dict[Connection, Any] = {}
    while len(reports) < len(pipes):
        left = deadline - time.monotonic()
        ready = wait([pipe for pipe in pipes if pipe not in reports], max(0.0, left))
        if not ready:
            raise BenchError("no result in time")
        for pipe in pipes:
            if pipe in ready:
                reports[pipe] = _report(pipe)
    return [reports[pipe] for pipe in pipes]


def _report(pipe: Connection) -> Any:
    try:
        report = pipe.recv()
    except EOFError:
        raise BenchError("a process died without a word") from None
    if isinstance(report, str):
        raise BenchError(report)
    return report


def _check(plan: Plan, outcome: Outcome) -> None:
    """Make sure that the events arrived that were sent; the workloads have checked their order."""
    if plan.shape != "shared":
        return
    count, total = sum(r.events for r in outcome.received), sum(r.checksum for r in outcome.received)
    if (count, total) != (plan.events, checksum(plan.events)):
        raise BenchError(f"the workers together did not get every event once: got={count}, sent={plan.events}")


# -- in the children


def _child(plan: Plan, wiring: Any, index: int | None, barrier: Barrier, pipe: Connection) -> None:
    try:
        report: Any = _send(plan, wiring, barrier) if index is None else _receive(plan, wiring, index, barrier)
    except Exception:
        report = traceback.format_exc()
    pipe.send(report)


def _send(plan: Plan, wiring: Any, barrier: Barrier) -> Sent:
    workload = workloads.load(plan.workload)
    barrier.wait()  # until the receivers can be found
    with peers.load(plan.peer).sender(plan, wiring) as sender:
        barrier.wait()
        cpu, first = time.process_time(), time.monotonic_ns()
        workload.produce(plan, sender)
        return Sent(first, time.monotonic_ns(), time.process_time() - cpu)


def _receive(plan: Plan, wiring: Any, index: int, barrier: Barrier) -> Received:
    workload = workloads.load(plan.workload)
    with peers.load(plan.peer).receiver(plan, wiring, index) as receiver:
        barrier.wait()
        barrier.wait()  # until the sender is ready too
        cpu, first = time.process_time(), time.monotonic_ns()
        received = workload.consume(plan, receiver)
        return replace(received, first_ns=first, cpu=time.process_time() - cpu)
