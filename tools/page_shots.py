"""Pictures of a bus in trouble, into docs/images: the page of `shmbus serve`, on a desk and on a phone, light and dark,
and `shmbus top`.

    python tools/page_shots.py [--into FOLDER] [--keep SECONDS]

Needs the extras `serve` and `top`, playwright, Pillow, which makes the pictures small, and a chromium on PATH. The bus:
a subscriber that is stopped and holds up two publishers, one that was killed, a group that rejects, a lossy subscriber
that is overrun.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import shmbus

BUS = "shop"
SIZES = {"desk": (1280, 860), "phone": (390, 844)}
ROOT = Path(__file__).resolve().parents[1]


class Order(msgspec.Struct):
    order_id: int
    cents: int


ORDERS = shmbus.Topic("orders", Order, capacity=1 << 16)
TELEMETRY = shmbus.Topic("telemetry", Order, capacity=1 << 14)


def publish(bus: str, name: str, topic: shmbus.Topic[Order], rate: float, on_full: Any) -> None:
    with shmbus.Bus(bus) as opened, opened.publisher(topic, name=name, on_full=on_full) as publisher:
        for n in range(1, 1 << 30):
            publisher.publish(Order(n, 250 * n))
            time.sleep(1 / rate)


def subscribe(bus: str, name: str, topic: shmbus.Topic[Order], mode: Any, pause: float) -> None:
    with shmbus.Bus(bus) as opened, opened.subscriber(topic, name=name, mode=mode, on_gap=lambda _: None) as subscriber:
        for _ in subscriber:
            time.sleep(pause)


def work(bus: str, group: str, reject: int) -> None:
    with shmbus.Bus(bus) as opened, opened.worker(ORDERS, group=group) as worker:
        for message in worker.messages():
            if message.event.order_id % reject == 0:
                message.reject("card expired")
            else:
                message.ack()


CONSUMERS: list[tuple[Any, ...]] = [
    (subscribe, "audit", ORDERS, "reliable", 0),
    (subscribe, "export", ORDERS, "reliable", 0.02),
    (subscribe, "monitor", ORDERS, "lossy", 0.03),
    (work, "billing", 97),
    (work, "billing", 97),
    (subscribe, "dashboard", TELEMETRY, "lossy", 0.001),
    (subscribe, "archive", TELEMETRY, "reliable", 0),
]
PUBLISHERS: list[tuple[Any, ...]] = [
    (publish, "web", ORDERS, 300, "block"),
    (publish, "app", ORDERS, 120, "block"),
    (publish, "probe-1", TELEMETRY, 400, "drop"),
]


def start(bus: str, jobs: list[tuple[Any, ...]]) -> list[multiprocessing.Process]:
    found = [multiprocessing.Process(target=job, args=(bus, *arguments)) for job, *arguments in jobs]
    for process in found:
        process.start()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--keep", type=float, default=0.0, help="seconds for which the bus and the page stay up")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("page_shots: no chromium on PATH", file=sys.stderr)
        return 1
    multiprocessing.set_start_method("spawn")
    processes = start(BUS, CONSUMERS)
    server = None
    try:
        while not {"audit", "export", "monitor", "archive"} <= {c.name for c in _consumers()}:
            time.sleep(0.1)
        processes += start(BUS, PUBLISHERS)
        server = subprocess.Popen(
            [sys.executable, "-m", "shmbus", "serve", BUS, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        time.sleep(12)
        for process, number in ((processes[1], signal.SIGSTOP), (processes[6], signal.SIGKILL)):
            os.kill(process.pid or 0, number)
        time.sleep(12)
        arguments.into.mkdir(parents=True, exist_ok=True)
        take(chromium, url, asyncio.run(screens()), arguments.into)
        print(url, flush=True)
        time.sleep(arguments.keep)
    finally:
        for process in processes:
            process.kill()
            process.join()
        if server is not None:
            server.terminate()
            server.wait()
        from shmbus import inspect

        with suppress(shmbus.BusNotFoundError):
            inspect.remove(BUS, force=True)
    return 0


def _consumers() -> tuple[shmbus.ConsumerStats, ...]:
    from shmbus import inspect

    try:
        return inspect.stats_of(BUS).consumers
    except shmbus.BusNotFoundError:
        return ()


async def screens() -> dict[str, str]:
    """`top`, and its page of who is in trouble, as SVG."""
    from shmbus.cli._top_app import TopApp
    from shmbus.cli.stat import Looker

    looker = Looker(BUS)
    looks = 0

    def look() -> shmbus.BusStats:
        nonlocal looks
        looks += 1
        looker.look()
        return looker.found[BUS]

    look()
    app = TopApp(look, 0.5)
    found = {}
    async with app.run_test(size=(132, 24)) as pilot:
        for name, key in (("top", ""), ("top-own", "enter")):
            if key:
                await pilot.press(key)
            until = looks + 12
            while looks < until:
                await pilot.pause(0.1)
            found[name] = app.export_screenshot(title=f"shmbus top {BUS}")
    return found


def take(chromium: str, url: str, screens: dict[str, str], into: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                for what, fragment in (("", ""), ("-own", f"#/{BUS}/subscriber/orders/export")):
                    if what and (name, scheme) != ("desk", "light"):
                        continue
                    page.goto("about:blank")
                    page.goto(url + fragment)
                    page.wait_for_selector("#trouble .critical")
                    page.wait_for_timeout(1500)
                    save(into / f"page-{name}-{scheme}{what}.png", page.screenshot())
                context.close()
        page = browser.new_page(viewport={"width": 1320, "height": 900})
        for name, screen in screens.items():
            page.set_content(f"<style>body {{ margin: 0 }}</style>{screen}")
            save(into / f"{name}.png", page.locator("svg").first.screenshot())
        browser.close()


def save(path: Path, picture: bytes) -> None:
    """With the 256 colours that suit it best: nobody sees the difference, and it is less than half of the bytes."""
    from PIL import Image

    found = Image.open(io.BytesIO(picture)).convert("RGB")
    found.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    raise SystemExit(main())
