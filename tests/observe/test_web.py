"""`shmbus serve`: what it answers, to whom, and how soon it says that a bus is in trouble."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from support import Processes, eventually, line
from web_pages import ask, ask_json, serve

import shmbus

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 12)


def unready(url: str) -> list[dict[str, str]]:
    """The problems that make it so, the worst first; none while it is ready."""
    status, found = ask_json(f"{url}readyz")
    return list(found["problems"]) if status == 503 else []


def blocked(url: str) -> list[dict[str, str]]:
    """Of those who waits for whom. Of who is starved of the processor more may be said."""
    return [problem for problem in unready(url) if problem["kind"] == "blocked"]


def test_metrics_json_and_page(bus_name: str, processes: Processes) -> None:
    """Metrics in both formats, the JSON of `stat`, and the page with all its parts come from one server."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        publisher.publish_many(range(3))
        url = serve(processes, bus_name)
        status, text = ask(f"{url}metrics")
        assert status == 200
        assert f'shmbus_published_total{{bus="{bus_name}",publisher="web",topic="numbers"}} 3.0'.encode() in text
        status, text = ask(f"{url}metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith(b"# EOF\n")
        status, body = ask(f"{url}api/buses")
        found = msgspec.json.decode(body, type=list[shmbus.BusStats])
        assert [p.published for p in found[0].publishers] == [3]
        for part in ("", "page.js", "page.css", "flow.js", "own.js", "words.js", "icon.svg"):
            assert ask(url + part)[0] == 200
        assert ask(f"{url}api/buses/nobody")[0] == 404
        assert ask(f"{url}livez")[0] == 200


def test_a_stopped_subscriber_makes_it_unready(bus_name: str, processes: Processes) -> None:
    """Within 2 s of a subscriber being stopped with work to do `/readyz` is 503 and names it; then 200 again."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web", on_full="drop") as publisher:
        child = processes.spawn(receive_for_ever, bus_name)
        assert line(child) == "ready"
        url = serve(processes, bus_name)
        publisher.publish(1)
        took: list[float] = []
        while not took or (min(took) >= 2 and len(took) < 20):  # who is starved of the processor is late
            eventually(lambda: ask(f"{url}readyz")[0] == 200, "it is ready")
            child.send_signal(signal.SIGSTOP)
            publisher.publish(2)
            begun = time.monotonic()
            found = eventually(lambda: unready(url), "it is not ready")
            took.append(time.monotonic() - begun)
            assert [(p["kind"], p["who"]) for p in found if p["severity"] == "critical"] == [("stopped", "sleeper")]
            assert ask(f"{url}healthz")[0] == 503
            child.send_signal(signal.SIGCONT)
        assert min(took) < 2, took
        eventually(lambda: ask(f"{url}readyz")[0] == 200, "it is ready again")


def receive_for_ever(bus_name: str) -> None:
    import shmbus

    topic = shmbus.Topic("numbers", int, capacity=1 << 12)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic, name="sleeper") as subscriber:
        print("ready", flush=True)
        for _ in subscriber:
            pass


def test_a_blocked_publisher_makes_it_unready(bus_name: str, processes: Processes) -> None:
    """A publisher that waits, with no event for a second, is a reason for 503 that names who holds it up."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name="idler") as idler:
        child = processes.spawn(publish_for_ever, bus_name)
        url = serve(processes, bus_name)
        [problem] = eventually(lambda: blocked(url), "it is not ready")
        assert (problem["severity"], problem["who"]) == ("critical", "web")
        assert "idler" in problem["why"]
        child.kill()
        child.wait()
        assert idler.receive(timeout=10) == 0


def publish_for_ever(bus_name: str) -> None:
    import itertools

    import shmbus

    topic = shmbus.Topic("numbers", int, capacity=1 << 12)
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic, name="web") as publisher:
        for n in itertools.count():
            publisher.publish(n)


def test_a_token_is_asked_for(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """With a token names and figures are told to who has it alone; probes and the page itself need none."""
    (tmp_path / "token").write_text("open-sesame\n")
    with shmbus.Bus(bus_name):
        url = serve(processes, bus_name, "--token-file", str(tmp_path / "token"))
        for path in ("metrics", "api/buses", f"api/buses/{bus_name}"):
            assert ask(url + path)[0] == 401
            assert ask(url + path, "wrong")[0] == 401
            assert ask(url + path, "open-sesame")[0] == 200
        assert ask_json(f"{url}readyz") == (200, {"status": "ok"})
        assert ask_json(f"{url}readyz", "open-sesame")[1]["buses"] == [bus_name]
        assert ask(url)[0] == ask(f"{url}livez")[0] == 200


def test_it_answers_to_its_own_name_only(bus_name: str, processes: Processes) -> None:
    """On loopback a name that somebody has pointed here is refused, and nothing but reading is served."""
    with shmbus.Bus(bus_name):
        url = serve(processes, bus_name)
        assert ask(f"{url}metrics", Host="rebound.example")[0] == 421
        assert ask(f"{url}metrics", Host="localhost:80")[0] == 200
        port = int(url.rsplit(":", 1)[1].strip("/"))
        for method in ("POST", "PUT", "DELETE"):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(
                    f"{method} /api/buses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
                )
                assert connection.makefile("rb").readline().split()[1] == b"405"


def test_a_bus_that_comes_and_goes(bus_name: str, processes: Processes) -> None:
    """A named bus that is not there is a reason for 503 until it comes, and again when it is gone."""
    url = serve(processes, bus_name)
    status, found = ask_json(f"{url}readyz")
    assert (status, found["problems"][0]["kind"]) == (503, "unreadable")
    with shmbus.Bus(bus_name):
        eventually(lambda: ask(f"{url}readyz")[0] == 200, "it is ready")
    eventually(lambda: ask(f"{url}readyz")[0] == 503, "it is gone")
    assert ask(f"{url}metrics")[0] == 200


def test_https(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """With a certificate and its key the server speaks TLS."""
    import shutil
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with shmbus.Bus(bus_name):
        url = serve(processes, bus_name, "--certfile", str(certificate), "--keyfile", str(key))
        assert url.startswith("https://")
        assert ask(f"{url}livez", context=ssl.create_default_context(cafile=str(certificate)))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "9464"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--listen", "203.0.113.1:0"], "cannot listen on"),
        (["--token-file", "/nonexistent"], "No such file"),
        (["--certfile", "/nonexistent"], "go together"),
        (["--certfile", "/nonexistent", "--keyfile", "/nonexistent"], "No such file"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], said: str) -> None:
    """What is wrong with an option is told in one line, and the command fails."""
    command = [sys.executable, "-m", "shmbus", "serve", *arguments]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("shmbus: ")


def test_sigterm_ends_it_in_order(bus_name: str) -> None:
    """SIGTERM ends the server with exit code 0, though a scraper keeps its connection open."""
    with shmbus.Bus(bus_name):
        command = [sys.executable, "-m", "shmbus", "serve", bus_name, "--listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096)
            server.terminate()
            assert server.wait(30) == 0
        server.stdout.close()
