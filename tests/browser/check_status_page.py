"""The status page in a real browser, against a live run. `make browser-test` runs it: it takes Chromium and Playwright.

Screenshots at desktop and phone width, light and dark, go to build/status-page: look at them.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from run_directory.journal import read_metrics
from tests.programs import ENDLESS, Programs

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "status-page"
MOST_BYTES = 300_000
MARKED_WITHIN_SECONDS = 10.0


class Run:
    """A learner with two actors, one of them for a test to kill, and its page's address."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.folder = programs.folder / "run"
        flags = ["--actors", "1", "--status", "127.0.0.1:0", "--max-in-flight", "2", "--stop-at-return", "1e9", *ENDLESS]
        self.learner = programs.learner(self.folder, *flags)
        address = programs.address(self.learner)
        self.victim = programs.actor(address, "--name", "victim")
        programs.wait_until(lambda: self.lines() and self.lines()[-1]["learner_updates"] > 20, self.learner, self.victim)
        programs.wait_until(lambda: self.lines()[-1]["actors"] == 2, self.learner, self.victim)

    @property
    def url(self) -> str:
        return next(word for word in self.programs.text(self.learner).split() if word.startswith("http://"))

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    programs = Programs(tmp_path_factory.mktemp("run"))
    try:
        yield Run(programs)
    finally:
        programs.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, run: Run, **options: Any) -> Page:
    page: Page = browser.new_context(**options).new_page()
    page.goto(run.url)
    page.locator("#rows tr").nth(1).wait_for()
    page.locator("#charts path").nth(5).wait_for(state="attached")
    return page


def test_its_numbers_are_those_of_a_line_of_metrics(browser: Any, run: Run) -> None:
    page = opened(browser, run)
    pair = "row => [row.children[0].textContent, row.children[1].textContent]"
    read = f"() => [document.querySelector('#evidence').textContent, [...document.querySelectorAll('#figures div')].map({pair})]"
    evidence, figures = page.evaluate(read)
    shown = dict(figures)
    page.wait_for_timeout(2000)  # the line may be shown before it is written
    lines = {f"{line['env_steps']:,}": line for line in run.lines()}
    line = lines[shown["trained steps"]]
    assert shown["updates"] == f"{line['learner_updates']:,}"
    assert shown["version"] == f"{line['parameter_version']:,}"
    assert shown["episodes"] == f"{line['episodes']:,}"
    assert shown["learner waits"] == f"{100 * line['learner_wait_fraction']:.0f}%"
    assert shown["actors"] == "2"
    assert evidence.lower() == f"{line['limit_evidence']}.".lower()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "name"), [(1280, "desktop"), (390, "phone")])
def test_it_can_be_read_at_any_width_and_light(browser: Any, run: Run, width: int, name: str, scheme: str) -> None:
    page = opened(browser, run, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    print(name, scheme, [(each["id"], each["impact"]) for each in found])
    assert [(each["id"], each["help"]) for each in found if each["impact"] in {"serious", "critical"}] == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", full_page=True)


def test_it_is_small_and_asks_no_other_host(browser: Any, run: Run) -> None:
    page = browser.new_context().new_page()
    sizes: list[dict[str, int]] = []
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfinished", lambda request: sizes.append(request.sizes()))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(run.url)
    page.locator("#charts path").nth(5).wait_for(state="attached")
    assert [url for url in asked if not url.startswith(run.url)] == []
    received = sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes)
    print(f"{received} bytes")
    assert received < MOST_BYTES
    assert faults == []


def test_the_table_sorts_by_the_keyboard(browser: Any, run: Run) -> None:
    page = opened(browser, run)
    heading = page.locator("th button", has_text="actor")
    heading.focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text().startswith("actor")
    names = page.locator("#rows tr td:nth-child(2)").all_inner_texts()
    assert names == sorted(names)
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert page.locator("#rows tr td:nth-child(2)").all_inner_texts() == sorted(names, reverse=True)


def test_an_actor_that_is_killed_is_marked_within_ten_seconds(browser: Any, run: Run) -> None:
    page = opened(browser, run)
    run.victim.kill()
    killed = time.monotonic()
    page.locator("#rows tr.sick", has_text="victim").wait_for(timeout=60_000)
    seconds = time.monotonic() - killed
    page.locator("#events li", has_text="actor victim has not called").wait_for()
    print(f"marked after {seconds:.1f} s")
    assert seconds <= MARKED_WITHIN_SECONDS
