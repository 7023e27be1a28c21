"""Settling: what becomes of an event once its chain has ended. Settles messages, and logs what failed.

Must stay true:
- What a handler returned is published before its event is acked: a death in between publishes it twice, never not.
- Whatever is raised, the event is acked, given back or dead-lettered; the only ones that are none of these are taken
  from us: by a death, or because they took too long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import ClosedError, EventTooLargeError, EventTypeError, ReclaimedError
from shmbus.middleware.protocol import Redeliver, Reject, described

if TYPE_CHECKING:
    from shmbus.middleware.protocol import Delivery

_log = logger("shmbus.router")


class Verdict(NamedTuple):
    """What is to be done with an event; an empty reason: no dead letter."""

    done: bool
    reason: str = ""
    delay: float = 0.0
    counts: bool = True


DONE: Final = Verdict(True)


def judge(delivery: Delivery[Any], error: BaseException | None) -> Verdict:
    """What the end of a chain says of its event."""
    if error is None:
        return DONE
    last = delivery.attempt >= delivery.max_deliver
    if isinstance(error, Redeliver):
        cause = error.__cause__
        if not delivery.can_come_again:
            _tell(delivery, cause or error, "delivered once")
        elif error.counts and last:
            return Verdict(False, described(cause) if cause else f"asked for again {delivery.attempt} times")
        return Verdict(False, "", error.delay, error.counts)
    if isinstance(error, Reject):
        if not delivery.can_come_again:
            _tell(delivery, error.__cause__ or error, "delivered once")
        return Verdict(False, error.reason or "rejected")
    if not isinstance(error, Exception):
        return Verdict(False)
    if not delivery.can_come_again:
        _tell(delivery, error, "delivered once")
        return Verdict(False)
    _tell(delivery, error, f"delivery {delivery.attempt} of {delivery.max_deliver}")
    return Verdict(False, f"{described(error)} in {delivery.handler}, attempt {delivery.attempt}" if last else "")


def _tell(delivery: Delivery[Any], error: BaseException, which: str) -> None:
    _log.error(
        "%s raised for event %s of topic %s (%s)",
        *(delivery.handler, delivery.id, delivery.topic, which),
        exc_info=error,
        extra={"handler": delivery.handler, "topic": delivery.topic, "event_id": delivery.id},
    )


def settle(delivery: Delivery[Any], verdict: Verdict) -> None:
    """Do it, in a thread."""
    message = delivery.message
    if delivery.kind != "worker" or message.settled:
        return
    try:
        if verdict.done:
            reach("router.handled")
            message.ack()
        elif verdict.reason:
            message.reject(verdict.reason)
        else:
            message.nack(verdict.delay, counts=verdict.counts)
    except (ReclaimedError, ClosedError) as error:
        _taken(delivery, error)


def answer(delivery: Delivery[Any], value: Any, error: BaseException | None) -> None:
    """Reply to a call, in a thread: with what its handler returned, or that it failed; or it goes to another server."""
    call = delivery.message
    if call.message.settled:
        return
    try:
        if error is None:
            call.reply(value)
        elif isinstance(error, Redeliver):
            call.message.nack(error.delay, counts=error.counts)
        elif isinstance(error, Exception):
            call.fail(_reason(delivery, error))
        else:
            call.message.nack()
    except (EventTypeError, EventTooLargeError) as refused:
        call.fail(_reason(delivery, refused))
    except (ReclaimedError, ClosedError) as taken:
        _taken(delivery, taken)


async def aanswer(delivery: Delivery[Any], value: Any, error: BaseException | None) -> None:
    """The same in an event loop."""
    call = delivery.message
    if call.message.settled:
        return
    try:
        if error is None:
            await call.areply(value)
        elif isinstance(error, Redeliver):
            call.message.nack(error.delay, counts=error.counts)
        elif isinstance(error, Exception):
            await call.afail(_reason(delivery, error))
        else:
            call.message.nack()
    except (EventTypeError, EventTooLargeError) as refused:
        await call.afail(_reason(delivery, refused))
    except (ReclaimedError, ClosedError) as taken:
        _taken(delivery, taken)


def _reason(delivery: Delivery[Any], error: Exception) -> str:
    if isinstance(error, Reject):
        return error.reason
    _tell(delivery, error, "a call")
    return described(error)


async def asettle(delivery: Delivery[Any], verdict: Verdict) -> None:
    """Do it, in an event loop."""
    message = delivery.message
    if delivery.kind != "worker" or message.settled:
        return
    try:
        if verdict.done:
            reach("router.handled")
            await message.aack()
        elif verdict.reason:
            await message.areject(verdict.reason)
        else:
            await message.anack(verdict.delay, counts=verdict.counts)
    except (ReclaimedError, ClosedError) as error:
        _taken(delivery, error)


def _taken(delivery: Delivery[Any], error: Exception) -> None:
    if isinstance(error, ReclaimedError):
        _log.warning("%s was too slow for event %s: %s", delivery.handler, delivery.id, error)
