"""The page in a real browser: right figures while a bus runs and a consumer is killed, and no error on the console."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support import Processes, line
from web_pages import serve

import shmbus

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 16)
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A chromium of this system."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


class Reader:
    """Somebody who looks at the page, and writes down what the console says."""

    def __init__(self, browser: Browser, size: tuple[int, int], scheme: Any = "light") -> None:
        viewport: Any = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.page.on("console", self.listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))

    def listen(self, message: ConsoleMessage) -> None:
        """Keep what is an error or a warning."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def seconds_of_a_turn(self) -> float:
        """What the page takes of the processor each time that it has asked; of five."""
        session = self.context.new_cdp_session(self.page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})  # a busy machine does not count

        def spent() -> float:
            found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            return float(found["TaskDuration"])

        before = spent()
        for _ in range(5):
            with self.page.expect_response("**/api/**"):
                pass
        return (spent() - before) / 5

    def row(self, table: str, text: str) -> dict[str, str]:
        """The cells of the first row of a table that has a text, by column."""
        self.page.wait_for_selector(f"#{table} tbody tr:has-text({text!r})")
        head = self.page.locator(f"#{table} thead th").all_inner_texts()
        cells = self.page.locator(f"#{table} tbody tr:has-text({text!r})").first.locator("td").all_inner_texts()
        return dict(zip(head, cells, strict=True))

    def close(self) -> None:
        """Look away; nothing may have been complained of."""
        self.context.close()
        assert not self.complaints


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_the_page_shows_a_bus_and_a_death(
    bus_name: str, processes: Processes, browser: Browser, size: tuple[int, int], scheme: str
) -> None:
    """Published, delivered and depth are on the page; a killed subscriber is told as dead, with its loss."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web", on_full="drop") as publisher:
        audit = bus.subscriber(NUMBERS, name="audit")
        sleeper = processes.spawn(subscribe_and_wait, bus_name)
        assert line(sleeper) == "ready"
        publisher.publish_many(range(1500))
        assert len(audit.receive_many(1500)) == 1500
        reader = Reader(browser, size, scheme)
        reader.page.goto(serve(processes, bus_name))
        found = reader.row("consumers", "numbers/sleeper")
        assert (found["Delivered"], found["Depth"], found["Lost"]) == ("0", "1,500", "0")
        found = reader.row("consumers", "numbers/audit")
        assert (found["Delivered"], found["Depth"], found["State"]) == ("1,500", "0", "ok")
        assert reader.row("publishers", "numbers/web")["Published"] == "1,500"
        label = reader.page.locator("#flow a").first.get_attribute("aria-label")
        assert label is not None
        assert label.startswith("Subscriber ")
        sleeper.send_signal(signal.SIGSTOP)
        reader.page.wait_for_selector("#trouble .critical:has-text('sleeper')")
        sleeper.send_signal(signal.SIGKILL)
        reader.page.wait_for_selector("#losses tr:has-text('abandoned')")
        found = reader.row("losses", "numbers/sleeper")
        assert (found["Cause"], found["Events"], found["Publisher"]) == ("abandoned", "1,500", "web")
        assert reader.row("consumers", "numbers/sleeper")["State"] == "dead"
        reader.page.wait_for_selector("#trouble .fine")
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        reader.close()


def subscribe_and_wait(bus_name: str) -> None:
    import signal

    import shmbus

    with shmbus.Bus(bus_name) as bus:
        subscriber = bus.subscriber(shmbus.Topic("numbers", int, capacity=1 << 16), name="sleeper")
        print("ready", flush=True)
        while subscriber is not None:
            signal.pause()


def test_a_consumer_has_a_view_of_its_own(bus_name: str, processes: Processes, browser: Browser) -> None:
    """By keyboard alone, from a consumer in the picture to its books: the heading has the focus."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        audit = bus.subscriber(NUMBERS, name='<b>audit</b> & "more"')
        publisher.publish_many(range(200))
        assert len(audit.receive_many(150)) == 150
        reader = Reader(browser, DESK)
        reader.page.goto(serve(processes, bus_name))
        reader.page.wait_for_selector("#flow a")
        reader.page.locator("#flow a").first.focus()
        reader.page.keyboard.press("Enter")
        reader.page.wait_for_selector("#own-title:focus")
        assert reader.page.inner_text("#own-title") == 'numbers/<b>audit</b> & "more"'
        sums = reader.page.locator("#own .sums").inner_text()
        assert "200 offered" in sums
        assert "150 delivered" in sums
        assert "50 depth" in sums
        assert "web: 150 delivered" in reader.page.inner_text("#own [data-part=publishers]")
        assert "at most" in reader.page.inner_text("#own [data-part=latency] figcaption")
        reader.page.click("#own a")
        reader.page.wait_for_selector("#own", state="hidden")
        reader.close()


def test_the_page_takes_hundreds_of_consumers(bus_name: str, processes: Processes, browser: Browser) -> None:
    """With 512 consumers every turn of the page is short, the picture sums up, and the filter finds each of them."""
    topics = [shmbus.Topic(f"topic-{n}", int, capacity=4096) for n in range(8)]
    with shmbus.Bus(bus_name) as bus:
        handles = [bus.subscriber(t, name=f"reader-{n}", mode="lossy") for t in topics for n in range(64)]
        publishers = [bus.publisher(topic, name="web") for topic in topics]
        for publisher in publishers:
            publisher.publish(1)
        reader = Reader(browser, DESK)
        reader.page.goto(serve(processes, bus_name))
        reader.page.wait_for_selector("#flow [aria-label*='more consumers']")
        assert reader.page.locator("#consumers tbody tr").count() == 100
        reader.page.fill("#filter", "topic-7/reader-63")
        reader.page.wait_for_function("document.querySelectorAll('#consumers tbody tr').length === 1")
        reader.page.fill("#filter", "")
        reader.page.wait_for_function("document.querySelectorAll('#consumers tbody tr').length === 100")
        assert reader.seconds_of_a_turn() < 0.5  # of the one second from turn to turn; 0.02 as a rule
        reader.close()
        assert len(handles) == 512


def test_the_page_asks_for_a_token(bus_name: str, processes: Processes, browser: Browser, tmp_path: Any) -> None:
    """A page without the token shows nothing but the question for it; with the right one it shows the bus."""
    (tmp_path / "token").write_text("sesame")
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web"):
        reader = Reader(browser, PHONE)
        reader.page.goto(serve(processes, bus_name, "--token-file", str(tmp_path / "token")))
        reader.page.wait_for_selector("#token:focus")
        assert not reader.page.is_visible("#main")
        reader.page.fill("#token", "wrong")
        reader.page.keyboard.press("Enter")
        reader.page.wait_for_selector("#refused:has-text('not the token')")
        reader.page.fill("#token", "sesame")
        reader.page.keyboard.press("Enter")
        reader.page.wait_for_selector("#publishers tr:has-text('numbers/web')")
        reader.complaints = [text for text in reader.complaints if "401" not in text]  # which the browser itself logs
        reader.close()
