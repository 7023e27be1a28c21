"""What the arguments of a Bus may be; raises ConfigError, with the value, before anything is created.

May touch: nothing.
"""

from __future__ import annotations

import math
from typing import Any

from shmbus.errors import ConfigError
from shmbus.topic import Topic


def check_topic(topic: object) -> None:
    if not isinstance(topic, Topic):
        raise ConfigError(f"expected a Topic: topic={topic!r}")


def check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} is one of {', '.join(map(repr, known))}: {option}={value!r}")


def check_range(option: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{option} is a whole number from 1 to {most}: {option}={value!r}")


def check_stall(seconds: object) -> int:
    """The stall timeout in nanoseconds."""
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise ConfigError(f"stall_timeout is a positive number of seconds: stall_timeout={seconds!r}")
    return int(seconds * 1e9)


def nanoseconds(option: str, seconds: float | None) -> int:
    """A positive number of seconds; 0 for None."""
    if seconds is None:
        return 0
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < 1e9:
        raise ConfigError(f"{option} is None or a positive number of seconds: {option}={seconds!r}")
    return max(1, int(seconds * 1e9))


def check_path(key: str | None, topic: Topic[Any]) -> str | None:
    """The key of a group; None takes the group as it is."""
    if key is None:
        return None
    from shmbus._schema import keys  # whoever has none does without

    return keys.check_key(key, topic.type, topic.name)


def expiry_ns(expires: float | None) -> int | None:
    """None leaves what a group has, 0 is never."""
    if expires is None or expires == math.inf:
        return None if expires is None else 0
    return nanoseconds("expires", expires)
