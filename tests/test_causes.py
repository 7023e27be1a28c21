"""Words for the end of a process."""

from __future__ import annotations

import pytest

from shmbus._deaths import cause


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-40, "killed by signal 40"),
    ],
)
def test_cause(code: int, words: str) -> None:
    """A signal is named, a real-time one numbered, and an exit code told as it is."""
    assert cause(code) == words
