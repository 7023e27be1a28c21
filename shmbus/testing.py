"""Suites that a user's own tests can call: the same that every part of shmbus of its kind passes.

    def test_mine() -> None:
        shmbus.testing.check_middleware(lambda: Mine(limit=5))

Each raises AssertionError with what does not hold, returns None, and needs nothing of pytest.
"""

from __future__ import annotations

from shmbus._conformance.bridges import bridge_conformance
from shmbus._conformance.codecs import codec_conformance
from shmbus._conformance.journals import journal_conformance
from shmbus.router.conformance import check_middleware

__all__ = ["bridge_conformance", "check_middleware", "codec_conformance", "journal_conformance"]
