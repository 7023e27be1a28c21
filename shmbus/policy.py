"""Policy: what becomes of a consumer that holds its publishers back and does nothing. A value."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shmbus.errors import ConfigError

STALLED: Final = ("report", "quarantine", "kill")


class Policy(msgspec.Struct, frozen=True):
    """What the supervisor of a bus does about who is stalled: alive, with events waiting, and without progress.

    "report": it is told of, in stats, health and log. "quarantine": after so many seconds without progress a reliable
    subscriber holds its publishers back no longer: one that it leaves no room goes on without it. Once it receives
    again it gets all that it had been left with, is told of what it has missed since, which is `overrun`, and is
    reliable from there. Groups are left alone. "kill": the process of a reliable subscriber, and those of a group's
    workers that hold events, are killed by SIGKILL, and reclaimed as any dead: what a subscriber had not received is
    `abandoned`, what workers held goes to others. Lossy subscribers hold nobody back, and are left alone. Raises
    ConfigError.
    """

    stalled: Literal["report", "quarantine", "kill"] = "report"
    after: float = 10.0
    """Seconds; the supervisor looks once a second."""

    def __post_init__(self) -> None:
        if self.stalled not in STALLED:
            raise ConfigError(f"stalled is one of {', '.join(map(repr, STALLED))}: stalled={self.stalled!r}")
        number = isinstance(self.after, (int, float)) and not isinstance(self.after, bool)
        if not number or not 1 <= self.after < 1e9:
            raise ConfigError(f"after is a number of seconds from 1: after={self.after!r}")
