"""The signal mask of a thread while something is half-done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from shmbus import _core
from shmbus._shm.signals import held_off, let_in


class Came(Exception):
    """Raised by the handler."""


@pytest.fixture
def raising() -> Iterator[None]:
    """SIGUSR1 raises, and the mask is as it was in the end."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Came

    before, mask = signal.signal(signal.SIGUSR1, handler), mask_now()
    yield
    assert mask_now() == mask
    signal.signal(signal.SIGUSR1, before)


def mask_now() -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def test_all_are_held_off_and_run_at_the_end(raising: None) -> None:
    """A handler runs once what was half-done is done, and what it raises is raised there."""
    held: list[set[int]] = []
    with pytest.raises(Came):
        interrupted(held)
    assert held[0] >= {int(signal.SIGUSR1), int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGRTMAX)}


def interrupted(held: list[set[int]]) -> None:
    with held_off():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # another thread would take it
        held.append(mask_now())


def test_what_was_held_off_before_stays_so(raising: None) -> None:
    """The end gives the thread the mask that it had, and not an empty one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with held_off(), let_in():
            assert signal.SIGUSR2 in mask_now()
            assert signal.SIGUSR1 not in mask_now()
        assert signal.SIGUSR2 in mask_now()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def test_a_handler_that_is_let_in_may_raise(raising: None) -> None:
    """What it raises comes out of `let_in`, and all are held off again behind it."""
    with held_off():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # another thread would take it
        with pytest.raises(Came), let_in():
            pass
        assert signal.SIGUSR1 in mask_now()


def test_outside_let_in_does_nothing(raising: None) -> None:
    """Where nothing is held off there is nothing to let in."""
    mask = mask_now()
    with let_in():
        assert mask_now() == mask


def test_no_other_bytes_are_a_mask() -> None:
    """A mask is what `signal_mask` returned."""
    for wrong in (b"", _core.signal_mask() + b"\0", "mask", None):
        with pytest.raises(TypeError):
            _core.set_signal_mask(wrong)  # type: ignore[arg-type]
