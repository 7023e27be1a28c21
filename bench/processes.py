"""One run: one workload with one peer, every end in a process of its own.

May touch: processes that it starts, and it ends them all. The clock runs from the first send to the last receive; a
barrier holds the senders until every receiver is ready, all until the senders are, and again until all have received.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from bisect import bisect_right
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final, cast

from . import peers, workloads
from .contract import BenchError, Latency, Plan, Received, Sent
from .event import checksum

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

    from .contract import Echo, OneWay, Peer, Receiver, Sender

PATIENCE: Final = 120.0
"""Seconds after which a run has failed."""
_JOIN: Final = 10.0
_CONTEXT: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Outcome:
    """What the processes of one run measured."""

    sent: tuple[Sent, ...]
    received: tuple[Received, ...]
    connected: bool

    @property
    def seconds(self) -> float:
        """From before the first send to after the last receive of the slowest receiver.

        Where the ends never meet, the time of the slowest end.
        """
        if not self.connected:
            spans = [s.last_ns - s.first_ns for s in self.sent] + [r.last_ns - r.first_ns for r in self.received]
            return max(spans) / 1e9
        return (max(end.last_ns for end in self.received) - min(end.first_ns for end in self.sent)) / 1e9


@dataclass(frozen=True)
class _Role:
    """One end: which of the functions below it runs, and as which of those that run it."""

    run: Callable[[Plan, Any, int, Barrier], Sent | Received]
    index: int


def run(plan: Plan, patience: float = PATIENCE) -> Outcome:
    """Run a plan once. Raises BenchError with what a process said when it failed, UnableError where the peer cannot."""
    peer = peers.carrier(plan.peer, plan.shape)
    if plan.rate:
        patience += plan.events / plan.rate
    with _wire(peer, plan) as wiring, ExitStack() as stack:
        reports = _reports(_start(plan, wiring, stack), time.monotonic() + patience)
    sent = tuple(report for report in reports if isinstance(report, Sent))
    received = tuple(report for report in reports if isinstance(report, Received))
    outcome = Outcome(sent, received, peer.CONNECTED)
    _check(plan, outcome)
    return outcome


@contextmanager
def _wire(peer: Peer, plan: Plan) -> Iterator[Any]:
    if plan.shape != "echo":
        with peer.wire(plan) as wiring:
            yield wiring
        return
    way = replace(plan, shape="one")
    with peer.wire(way) as there, peer.wire(way) as back:
        yield there, back


def _start(plan: Plan, wiring: Any, stack: ExitStack) -> list[Connection]:
    """Start all ends; the stack ends them."""
    if plan.shape == "echo":
        roles = [_Role(_ask, 0), _Role(_answer, 0)]
    else:
        roles = [_Role(_send, index) for index in range(plan.senders)]
        roles += [_Role(_receive, index) for index in range(plan.receivers)]
    barrier = _CONTEXT.Barrier(len(roles))
    return [stack.enter_context(_process(plan, wiring, role, barrier)) for role in roles]


@contextmanager
def _process(plan: Plan, wiring: Any, role: _Role, barrier: Barrier) -> Iterator[Connection]:
    """One end, and the pipe that its report comes from; killed at once when the run has failed."""
    pipe, its_pipe = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(plan, wiring, role, barrier, its_pipe), daemon=True)
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


def _child(plan: Plan, wiring: Any, role: _Role, barrier: Barrier, pipe: Connection) -> None:
    try:
        report: Any = role.run(plan, wiring, role.index, barrier)
    except Exception:
        report = traceback.format_exc()
    pipe.send(report)


def _send(plan: Plan, wiring: Any, index: int, barrier: Barrier) -> Sent:
    workload = cast("OneWay", workloads.load(plan.workload))
    barrier.wait()  # until the receivers can be found
    with peers.carrier(plan.peer, plan.shape).sender(plan, wiring, index) as sender:
        barrier.wait()
        cpu, first = time.process_time(), time.monotonic_ns()
        workload.produce(plan, sender, index)
        sent = Sent(first, time.monotonic_ns(), time.process_time() - cpu)
        barrier.wait()  # libzmq loses what waits in a connection that its sender has closed
        return sent


def _receive(plan: Plan, wiring: Any, index: int, barrier: Barrier) -> Received:
    workload = cast("OneWay", workloads.load(plan.workload))
    with peers.carrier(plan.peer, plan.shape).receiver(plan, wiring, index) as receiver:
        barrier.wait()
        barrier.wait()  # until the senders are ready too
        cpu, first = time.process_time(), time.monotonic_ns()
        received = _finished(workload.consume(plan, receiver), first, cpu)
        barrier.wait()
        return received


def _ask(plan: Plan, wiring: tuple[Any, Any], index: int, barrier: Barrier) -> Received:
    workload = cast("Echo", workloads.load(plan.workload))
    there, back = wiring
    with _both(plan, there, back, index, barrier) as (sender, receiver):
        cpu, first = time.process_time(), time.monotonic_ns()
        return _finished(workload.ask(plan, sender, receiver), first, cpu)


def _answer(plan: Plan, wiring: tuple[Any, Any], index: int, barrier: Barrier) -> Sent:
    workload = cast("Echo", workloads.load(plan.workload))
    there, back = wiring
    with _both(plan, back, there, index, barrier) as (sender, receiver):
        cpu, first = time.process_time(), time.monotonic_ns()
        workload.answer(plan, sender, receiver)
        return Sent(first, time.monotonic_ns(), time.process_time() - cpu)


@contextmanager
def _both(plan: Plan, out: Any, back: Any, index: int, barrier: Barrier) -> Iterator[tuple[Sender, Receiver]]:
    """The two ends of one process, once those of the other one are there too."""
    peer, way = peers.load(plan.peer), replace(plan, shape="one")
    with peer.receiver(way, back, index) as receiver:
        barrier.wait()
        with peer.sender(way, out, index) as sender:
            barrier.wait()
            yield sender, receiver


def _finished(received: Received, first: int, cpu: float) -> Received:
    cpu = time.process_time() - cpu  # before the latencies are sorted
    latency = _latency(received.samples) if received.samples else None
    return replace(received, first_ns=first, cpu=cpu, samples=None, latency=latency)


def _latency(samples: array[int]) -> Latency:
    """Percentiles; by the distinct values, of which there are far fewer than samples."""
    ordered = sorted(Counter(samples).items())
    reached = list(accumulate(times for _, times in ordered))

    def at(share: float) -> int:
        return ordered[bisect_right(reached, min(len(samples) - 1, int(len(samples) * share)))][0]

    return Latency(at(0.5), at(0.99), at(0.999), ordered[-1][0])
