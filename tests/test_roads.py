"""Every program of docs/roads runs, and says what it is to say."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from queue_workers import nothing_left
from support import child_environment, eventually

ROADS = Path(__file__).resolve().parents[1] / "docs" / "roads"
SAYS = {
    "start_methods.py": "fork [1, 4, 9]\nspawn [1, 4, 9]\nforkserver [1, 4, 9]\n",
    "pool_initializer.py": "[0, 1, 4, 9]\n[(0, 100), (1, 100), (2, 100), (3, 100)]\n",
    "loky_queue.py": "[(0, 0), (1, 1), (2, 4), (3, 9)]\n",
    "notebook.py": "1.5\n",
    "logging_setup.py": "worker 0 is at work\nworker 1 is at work\nworker 2 is at work\n",
}
BUSES = {"start_methods.py": "roads-spawn", "pool_initializer.py": "roads-pool", "notebook.py": "roads-notebook"}
NEEDS = {"loky_queue.py": "joblib"}
OF_THEIR_OWN = {"websocket_fanout.py", "test_under_xdist.py"}


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("name", SAYS)
def test_program(name: str) -> None:
    """It runs to its end and prints what is expected."""
    if name in NEEDS:
        need(NEEDS[name])
    done = subprocess.run(
        [sys.executable, ROADS / name],
        capture_output=True,
        text=True,
        timeout=120,
        env=child_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(SAYS[name].splitlines())
    nothing_left(BUSES.get(name, "no bus of its own"))


def test_the_page_on_queues(tmp_path: Path) -> None:
    """The program of docs/queues.md runs as it stands."""
    text = (ROADS.parent / "queues.md").read_text(encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=120, env=child_environment(), check=False
    )
    assert (done.returncode, done.stdout) == (0, "328350\n"), done.stderr


def test_all_are_run() -> None:
    """No program of the folder is without a test."""
    assert {path.name for path in ROADS.glob("*.py")} == {*SAYS, *OF_THEIR_OWN}


def test_xdist() -> None:
    """Tests with a bus each run side by side."""
    need("xdist")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, ROADS / "test_under_xdist.py"],
        capture_output=True,
        text=True,
        timeout=120,
        env=child_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_websockets(server: str) -> None:
    """What a client sends reaches every client, whichever worker each is connected to."""
    need(server, "uvicorn", "websockets")
    from websockets.sync.client import connect

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = {
        "uvicorn": f"uvicorn websocket_fanout:app --workers 2 --port {port}",
        "gunicorn": f"gunicorn websocket_fanout:app -w 2 -k uvicorn.workers.UvicornWorker -b 127.0.0.1:{port}",
    }
    process = subprocess.Popen([sys.executable, "-m", *commands[server].split()], cwd=ROADS, env=_with_roads())
    try:
        eventually(lambda: _listens(port))
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(f"ws://127.0.0.1:{port}/", proxy=None)) for _ in range(6)]
            eventually(_everybody_is_told(clients))
    finally:
        _ended(process)
    nothing_left("roads-chat")


def _ended(process: subprocess.Popen[bytes]) -> None:
    """The server and its workers, which go when it is asked to."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(30)
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        process.kill()
        process.wait()


def _with_roads() -> dict[str, str]:
    environment = child_environment(PYTHONPATH=str(ROADS))
    environment.pop("PYTHONSAFEPATH", None)
    return environment


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _everybody_is_told(clients: Sequence[object]) -> Callable[[], bool]:
    """Sends a line, and looks whether all got one; a worker that has just started may have missed the first."""
    told: set[int] = set()

    def hear(index: int, client: object) -> None:
        for line in client:  # type: ignore[attr-defined]
            assert line == "hello"
            told.add(index)

    for index, client in enumerate(clients):
        threading.Thread(target=hear, args=(index, client), daemon=True).start()

    def look() -> bool:
        clients[0].send("hello")  # type: ignore[attr-defined]
        return len(told) == len(clients)

    return look
