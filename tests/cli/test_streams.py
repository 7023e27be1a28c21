"""The command line on streams as people have them: ASCII, latin-1, closed, full, abandoned, narrow, dumb."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from support import Processes, child_environment, eventually, line

import shmbus

PATIENT = 60.0
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "coerced": {"LC_ALL": "C"},
    "dumb": {"TERM": "dumb"},
    "plain": {"NO_COLOR": "1"},
    "narrow": {"COLUMNS": "20"},
    "narrowest": {"COLUMNS": "1"},
}


class Seen(msgspec.Struct):
    what: str
    size: int = 0


FRONT = shmbus.Topic("camera/Front", Seen, capacity=1 << 16)


def environment(kind: str) -> Any:
    return ENCODINGS[kind]


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "shmbus", *arguments]
    env = child_environment(**environment)
    return subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENT, env=env, check=False)


def shell(script: str, bus_name: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A script of bash, in which $S is the command and $B the bus."""
    env = child_environment(B=bus_name, S=f"{sys.executable} -m shmbus", **environment)
    command = ["bash", "-c", f"set -o pipefail; {script}"]
    return subprocess.run(command, capture_output=True, timeout=PATIENT, env=env, check=False)


@pytest.fixture
def bus(bus_name: str) -> Iterator[shmbus.Bus]:
    """A bus whose names and events no single-byte encoding has."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRONT, name="prüfer ☃"),
        bus.publisher(FRONT, name="日本\N{GRINNING FACE}") as pub,
    ):
        pub.publish(Seen("ü☃\N{GRINNING FACE}"), headers={"k": "é"})
        yield bus


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_encoding(bus: shmbus.Bus, kind: str) -> None:
    """No encoding, terminal or width keeps a command from its answer, and JSON is ASCII on every one."""
    commands = (
        ("stat", bus.name),
        ("stat", bus.name, "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("tail", bus.name, "camera/Front", "--oldest", "-n", "1"),
        ("tail", bus.name, "camera/Front", "--oldest", "-n", "1", "--json"),
    )
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda arguments: run(*arguments, **environment(kind)), commands))
    for arguments, done in zip(commands, answers, strict=True):
        assert (done.returncode, done.stderr) == (0, b""), arguments
        assert done.stdout
        if kind in ("ascii", "C", "POSIX") or "--json" in arguments:
            assert done.stdout.isascii()
        if "--json" in arguments and arguments[0] != "doctor":
            assert "\N{GRINNING FACE}" in json.dumps(json.loads(done.stdout), ensure_ascii=False)


@pytest.mark.parametrize("kind", ["ascii", "C", "coerced"])
def test_what_goes_in_is_utf8(bus: shmbus.Bus, kind: str) -> None:
    """JSON and headers of `pub` are UTF-8 in every locale, on the command line and on stdin."""
    with bus.subscriber(FRONT) as sub:
        text = '{"what":"ü☃"}'
        assert run("pub", bus.name, "camera/Front", text, "-H", "k=é", **environment(kind)).returncode == 0
        assert run("pub", bus.name, "camera/Front", "-", stdin=text.encode(), **environment(kind)).returncode == 0
        message = next(sub.messages())
        assert (message.event.what, message.headers) == ("ü☃", {"k": "é"})
        assert sub.receive(timeout=5).what == "ü☃"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (r"printf '\xff\n' | $S pub $B camera/Front -", 1),
        (r"$S pub $B camera/Front $'\xff'", 1),
        (r"""$S pub $B camera/Front '{"what":"x","size":99999999999999999999}'""", 1),
        (r"""$S pub $B camera/Front '{"what":"x"}' -H $'k=\xff'""", 2),
        (r"$S stat $'\xff'", 2),
        (r"$S tail $B $'\xff'", 2),
        (r"$S tail $B a//b", 2),
        (r"$S tail $B Camera/front", 3),
    ],
)
def test_what_cannot_be_read(bus: shmbus.Bus, script: str, code: int) -> None:
    """Bytes that are no text, and numbers that no codec holds, are told in a line, not in a traceback."""
    for kind in ("ascii", "POSIX"):
        done = shell(script, bus.name, **environment(kind))
        assert (done.returncode, done.stdout) == (code, b""), done
        assert b"Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(b"shmbus")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("$S stat $B | head -c 1", 0),
        ("$S stat $B --json | true", 0),
        ("$S tail $B camera/Front --oldest | head -n 1", 0),  # it has nothing more to write, and yet it ends
        ("$S stat $B --watch 0.1 | head -n 1", 0),
        ("$S stat $B >&-", 0),
        ("$S doctor >&- 2>&-", 0),
        ("$S pub $B camera/Front - <&-", 0),
        ("$S stat $B-gone 2>&-", 3),
        ("$S stat $B --json > /dev/full", 1),
        ("$S tail $B camera/Front -n 1 --oldest > /dev/full", 1),
        ("$S stat $B-gone 2> /dev/full", 3),
    ],
)
def test_streams_that_are_not_there(bus: shmbus.Bus, script: str, code: int) -> None:
    """Closed, full and abandoned streams leave the exit code as it is, and cause no traceback."""
    done = shell(script, bus.name)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_help_without_room(bus_name: str) -> None:
    """Where there is no room for the help, the interpreter does not complain on its way out."""
    done = shell("$S --help > /dev/full", bus_name)
    assert (done.returncode, done.stderr) == (0, b"")


def test_top_on_a_dumb_terminal(bus: shmbus.Bus, processes: Processes) -> None:
    """A terminal that cannot move its cursor gets one answer after another."""
    ours, theirs = pty.openpty()
    child = processes.run(
        [sys.executable, "-m", "shmbus", "top", bus.name, "-i", "0.1"],
        stdout=theirs,
        env=child_environment(TERM="dumb", COLUMNS="80"),
    )
    os.close(theirs)
    text = b""
    while text.count(bus.name.encode()) < 2:
        text += os.read(ours, 4096)
    assert b"\x1b[?1049h" not in text
    child.terminate()
    child.wait(PATIENT)
    os.close(ours)


def test_names_in_a_process_with_no_text(bus_name: str, processes: Processes) -> None:
    """A process whose command line is no text takes part, and shows."""
    code = "import sys, shmbus\nwith shmbus.Bus(sys.argv[1]):\n    print('in', flush=True)\n    sys.stdin.read()"
    child = processes.run([sys.executable, "-c", code, bus_name, os.fsdecode(b"\xff\xfe")])
    assert line(child) == "in"
    done = run("stat", bus_name, "--json", **environment("POSIX"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads(done.stdout)["participants"]) == 1
    assert child.stdin is not None
    child.stdin.close()
    eventually(lambda: child.poll() == 0, "the child left")
