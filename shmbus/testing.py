"""For the tests of others: whether a plugin keeps what shmbus relies on.

Each raises AssertionError with what is not kept, and returns None.
"""

from __future__ import annotations

from shmbus._conformance.bridges import bridge_conformance
from shmbus._conformance.journals import journal_conformance

__all__ = ["bridge_conformance", "journal_conformance"]
