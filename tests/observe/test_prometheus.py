"""Prometheus itself: promtool finds nothing in what is exposed, a real server scrapes it and sees no counter reset."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from support import Processes, eventually
from web_pages import ask, serve

import shmbus

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observe"
NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 13)


def tool(name: str) -> str:
    """Where a program of Prometheus is; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on PATH (Debian: apt install prometheus)")
    return found


def busy(bus: shmbus.Bus) -> None:
    """Something of everything: drops, a dead letter, a subscriber that left."""
    with bus.publisher(NUMBERS, name="web", on_full="drop") as publisher:
        worker = bus.worker(NUMBERS, group="billing")
        with bus.subscriber(NUMBERS, name="audit") as audit:
            publisher.publish_many(range(300))
            audit.receive_many(70)
        messages = worker.messages()
        next(messages).reject("no")
        for _ in range(50):
            next(messages).ack()
        worker.close()


def test_promtool_finds_nothing(bus_name: str, processes: Processes) -> None:
    """`promtool check metrics` has nothing to say of the exposition."""
    promtool = tool("promtool")
    with shmbus.Bus(bus_name) as bus:
        busy(bus)
        _, text = ask(f"{serve(processes, bus_name)}metrics")
        bus.remove_group(NUMBERS, "billing")
    assert b"shmbus_latency_seconds_bucket" in text
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_rules_and_board_hold() -> None:
    """The alert rules pass their own tests, and rules and board ask for metrics that there are."""
    promtool = tool("promtool")
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        checked = subprocess.run([promtool, *command], cwd=DOCS, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    from shmbus.observe import metrics

    known = {"shmbus_up"}
    for family in metrics.BusCollector().describe():
        known |= {f"{family.name}{end}" for end in ("", "_total", "_bucket", "_count", "_sum")}
    board = json.loads((DOCS / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += re.findall(r"expr: (.*)", (DOCS / "alerts.yml").read_text())
    names = {name for expression in asked for name in re.findall(r"shmbus_\w+", expression)}
    assert names
    assert names <= known


def test_a_prometheus_scrapes_without_a_reset(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """Publishers and subscribers that come, go and come back under their names are no counter reset to Prometheus."""
    prometheus = tool("prometheus")
    with shmbus.Bus(bus_name) as bus:
        bus.group(NUMBERS, "keeps")
        url = serve(processes, bus_name)
        target = urllib.parse.urlsplit(url).netloc
        config = tmp_path / "prometheus.yml"
        job = f"{{job_name: shmbus, static_configs: [{{targets: ['{target}']}}]}}"
        config.write_text(f"global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\nscrape_configs: [{job}]\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        processes.run([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
        server = f"http://127.0.0.1:{port}"
        eventually(lambda: up(server), "Prometheus has scraped", 60)
        published = 0
        for turn in range(6):
            with bus.publisher(NUMBERS, name="web") as publisher, bus.worker(NUMBERS, group="keeps") as worker:
                with bus.subscriber(NUMBERS, name="audit") as audit:
                    publisher.publish_many(range(70))
                    published += 70
                    assert len(audit.receive_many(60)) == 60
                    assert len(worker.receive_many(70)) == 70
                    worker.ack()
                    eventually(lambda: told(server, published), f"turn {turn} is scraped", 60)  # noqa: B023
        names = json.loads(ask(f"{server}/api/v1/label/__name__/values")[1])["data"]
        ends = ("_total", "_count", "_bucket", "_sum")
        counters = [name for name in names if name.startswith("shmbus_") and name.endswith(ends)]
        assert "shmbus_latency_seconds_bucket" in counters
        assert {name: query(server, f"max(resets({name}[10m]))") for name in counters} == dict.fromkeys(counters, 0)
        for consumer, delivered in (("keeps", published), ("audit", 360)):
            asked = f'sum(shmbus_delivered_total{{consumer="{consumer}"}})'  # a scrape may be late, or come to nothing
            eventually(lambda: query(server, asked) == delivered, asked, 60)  # noqa: B023


def told(server: str, published: int) -> bool:
    return query(server, "sum(shmbus_published_total)") == published


def up(server: str) -> bool:
    try:
        return query(server, "shmbus_up") == 1
    except OSError:
        return False


def query(server: str, expression: str) -> float | None:
    status, body = ask(f"{server}/api/v1/query?query={urllib.parse.quote(expression)}")
    if status == 503:  # it is starting
        return None
    found: Any = json.loads(body)["data"]["result"]
    return float(found[0]["value"][1]) if found else None
