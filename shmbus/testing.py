"""Suites that a user's own tests can call: the same that every part of shmbus of its kind passes; and what kills a
process at a named line, and checks books, as the plugin of pytest does.

    def test_mine() -> None:
        shmbus.testing.check_middleware(lambda: Mine(limit=5))

Each raises AssertionError with what does not hold, returns None, and needs nothing of pytest.
"""

from __future__ import annotations

from shmbus._conformance.bridges import bridge_conformance
from shmbus._conformance.codecs import codec_conformance
from shmbus._conformance.deaths import check_books, kill, kill_at
from shmbus._conformance.journals import journal_conformance
from shmbus.router.conformance import check_middleware

__all__ = [
    "bridge_conformance",
    "check_books",
    "check_middleware",
    "codec_conformance",
    "journal_conformance",
    "kill",
    "kill_at",
]
