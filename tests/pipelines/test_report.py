"""The page of a real run, as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from html_pages import chromium
from playwright.sync_api import Page

from igd.pipelines.report import report
from igd.pipelines.run import Run


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 800})


def test_the_page_of_a_run_fits_a_phone_and_asks_for_nothing(published_run: Run,
                                                             browser_page: Page) -> None:
    target = report(published_run.request.out, published_run.request.date)
    requests: list[str] = []
    complaints: list[str] = []
    browser_page.on("request", lambda request: requests.append(request.url.split(",")[0]))
    browser_page.on("console", lambda message: complaints.append(message.text))
    browser_page.goto(Path(target.removeprefix("file://")).resolve().as_uri())
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    assert {url for url in requests if not url.startswith(("data:", "file:"))} == set()
    assert browser_page.locator("img").count() >= 8
    broken = browser_page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
    assert broken == 0
    text = browser_page.locator("body").inner_text()
    for expected in ("weave", "washer", "unknown_category", "loose.png", "not_image"):
        assert expected in text


def test_a_page_is_written_though_the_dump_and_the_models_are_gone(published_run: Run,
                                                                   tmp_path: Path) -> None:
    for source in published_run.request.sources:
        Path(source.removeprefix("file://")).unlink()
    page = tmp_path / "page.html"
    report(published_run.request.out, published_run.request.date, str(page))
    assert "weave" in page.read_text()
