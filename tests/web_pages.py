"""What tests of the web server share: a server in a child process, and questions to it."""

from __future__ import annotations

import json
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any

from support import Processes, line


def serve(processes: Processes, *arguments: str) -> str:
    """Start `shmbus serve` on a free port; returns its address, with a slash at the end."""
    command = [sys.executable, "-m", "shmbus", "serve", *arguments, "--listen", "127.0.0.1:0"]
    said = line(processes.run(command))
    return said.split()[-1]


def ask(url: str, token: str = "", context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=30, context=context
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask_json(url: str, token: str = "") -> tuple[int, Any]:
    """Status and JSON of a GET."""
    status, body = ask(url, token)
    return status, json.loads(body)
