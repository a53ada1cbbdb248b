"""The page at `/`, in a browser, over a real endpoint."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from html_pages import chromium
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect
from serving import endpoint_of, token

from igd.config import ImageConfig
from igd.data.images import decode_heatmap, overlay, prepare
from igd.serve.app import create_app
from igd.serve.config import EndpointConfig
from igd.serve.endpoint import Endpoint
from igd.serve.page import FILES
from igd.serve.tokens import Token

EVIL = "<img src=x onerror=alert(1)>.png"
TOKEN = "0123456789abcdef"
PIXELS = """() => [...document.querySelector(".heatmap").getContext("2d")
  .getImageData(0, 0, 64, 64).data]"""
Visit = Callable[..., Page]


@contextmanager
def served(endpoint: Endpoint) -> Iterator[str]:
    """The address of an endpoint that listens on loopback."""
    server = uvicorn.Server(uvicorn.Config(create_app(endpoint), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not (server.started and endpoint.catalogue.settled):
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def endpoint(tiny_models: Path) -> Endpoint:
    return endpoint_of(EndpointConfig(models=str(tiny_models), fpr=0.04, review_fpr=0.2,
                                      follow_s=3600, max_body_bytes=200_000))


@pytest.fixture(scope="module")
def url(endpoint: Endpoint) -> Iterator[str]:
    with served(endpoint) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    """Opens the page; fails where it asked anybody else for anything, or complained of more than
    the replies that the test `expects`."""
    complaints: list[str] = []
    asked: list[str] = []
    expected: list[int] = []
    contexts = []

    def start(at: str = url, *, expects: tuple[int, ...] = (), **options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        expected.extend(expects)
        page.goto(f"{at}/#weave")
        return page

    yield start
    origins = {re.match(r"(http://127.0.0.1:\d+|blob:http://127.0.0.1:\d+|data:image/png)", url)
               for url in asked}
    assert None not in origins, asked
    for status in expected:
        complaints.remove(next(c for c in complaints if f"status of {status}" in c))
    assert complaints == []
    for context in contexts:
        context.close()


def api(url: str, data: bytes) -> dict[str, Any]:
    """What a client gets for an image of `weave`, its heatmap with it."""
    with urllib.request.urlopen(f"{url}/v1/categories/weave/score?heatmap=png", data) as reply:
        return dict(json.load(reply))


def choose(page: Page, data: bytes, name: str = "part.png") -> None:
    kind = "image/tiff" if name.endswith("tif") else "image/png"
    expect(page.locator("#category")).to_have_value("weave")
    page.locator("#file").set_input_files(FilePayload(name=name, mimeType=kind, buffer=data))


def drop(page: Page, data: bytes) -> None:
    _give(page, data, "drop", "new DragEvent('drop', {dataTransfer: t, bubbles: true, "
                              "cancelable: true})")


def paste(page: Page, data: bytes) -> None:
    _give(page, data, "paste", "new ClipboardEvent('paste', {clipboardData: t, bubbles: true})")


def _give(page: Page, data: bytes, kind: str, event: str) -> None:
    expect(page.locator("#category")).to_have_value("weave")
    page.evaluate("""text => {
      const t = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
      t.items.add(new File([bytes], 'part.png', {type: 'image/png'}));
      document.body.dispatchEvent(EVENT);
    }""".replace("EVENT", event), base64.b64encode(data).decode())


@pytest.mark.parametrize("give", [choose, drop, paste])
def test_an_image_gets_the_score_and_the_decision_of_the_api(
        visit: Visit, url: str, picture: bytes, give: Callable[[Page, bytes], None]) -> None:
    page, answer = visit(), api(url, picture)
    give(page, picture)
    expect(page.locator("#decision .word")).to_have_text(answer["decision"], ignore_case=True)
    assert float(page.locator("#decision data").get_attribute("value") or "") == answer["score"]
    assert page.locator("#decision use").get_attribute("href") == f"#icon-{answer['decision']}"
    expect(page.get_by_role("status")).to_contain_text(f"part.png: {answer['decision']}. Score")
    assert answer["model_version"] in page.locator("[data-fact=model]").inner_text()
    with page.expect_download() as download:
        page.get_by_text("Download JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved.pop("timings_ms").keys() == answer.pop("timings_ms").keys()
    assert saved == answer and download.value.suggested_filename == "part.png.json"


def test_boxes_and_heatmap_lie_where_the_model_saw_them(visit: Visit, url: str, picture: bytes
                                                        ) -> None:
    page, answer = visit(), api(url, picture)
    assert answer["regions"] and answer["box"] == [32, 0, 128, 96]
    choose(page, picture)
    expect(page.locator(".drawing rect.region")).to_have_count(len(answer["regions"]))
    seen = page.locator(".source").bounding_box()
    assert seen is not None and seen["width"] / seen["height"] == pytest.approx(160 / 96, rel=.01)
    scale = seen["width"] / 160
    boxes = {".heatmap": answer["box"], ".drawing rect.region >> nth=0": [
        answer["regions"][0][name] for name in ("x0", "y0", "x1", "y1")]}
    for selector, (x0, y0, x1, y1) in boxes.items():
        found = page.locator(selector).bounding_box()
        assert found is not None
        assert (found["x"] - seen["x"], found["y"] - seen["y"]) == pytest.approx(
            (x0 * scale, y0 * scale), abs=3)
        assert (found["width"], found["height"]) == pytest.approx(
            ((x1 - x0) * scale, (y1 - y0) * scale), abs=3)
    cells = page.locator("#verdict tbody tr").first.locator("td").all_inner_texts()
    x0, y0, x1, y1, area, _ = answer["regions"][0].values()
    assert cells[1:4] == [f"{x0}, {y0}", f"{x1 - x0} \N{MULTIPLICATION SIGN} {y1 - y0}", str(area)]


def test_the_heatmap_has_the_colours_of_the_reports(visit: Visit, url: str, picture: bytes
                                                    ) -> None:
    page, answer = visit(), api(url, picture)
    choose(page, picture)
    expect(page.locator("#decision")).to_be_visible()
    page.wait_for_function("() => document.querySelector('.heatmap').width === 64")
    rgba = np.array(page.evaluate(PIXELS), float).reshape(64, 64, 4)
    image = prepare(np.asarray(Image.open(io.BytesIO(picture))), ImageConfig(size=64))
    heatmap = decode_heatmap(base64.b64decode(answer["heatmap"]), answer["heatmap_min"],
                             answer["heatmap_max"])
    expected = np.asarray(Image.open(io.BytesIO(overlay(
        image, heatmap, lo=answer["region_threshold"], hi=answer["heatmap_max"]))))
    assert (rgba[..., 3] == 0).any() and (rgba[..., 3] == 255).any()

    slider = page.get_by_label("Heatmap opacity")
    opacity = "getComputedStyle(document.querySelector('.heatmap')).opacity"
    alpha = float(page.evaluate(opacity)) * rgba[..., 3:] / 255
    assert np.abs(image * (1 - alpha) + rgba[..., :3] * alpha - expected).max() < 3
    slider.fill("20")
    assert page.evaluate(opacity) == "0.2" and slider.get_attribute("aria-valuetext") == "20%"


@pytest.mark.parametrize(("data", "status", "words"), [
    (b"hello", 422, "This file is not an image"), (b"", 422, "The file is empty"),
    (b"x" * 200_001, None, "larger than this endpoint takes")])
def test_what_is_no_image_is_told_in_words_and_its_name_stays_text(
        visit: Visit, data: bytes, status: int | None, words: str) -> None:
    page = visit(expects=(status,) if status else ())
    choose(page, data, EVIL)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#history button")).to_contain_text("No result")
    assert page.locator("#picture .name").inner_text() == EVIL
    assert page.locator("img[src=x]").count() == 0
    expect(page.locator("#decision")).to_be_hidden()


def test_an_image_that_browsers_cannot_show_is_shown_as_the_model_saw_it(
        visit: Visit, url: str, picture: bytes) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(stream, "TIFF")
    page = visit()
    choose(page, stream.getvalue(), "part.tif")
    expect(page.locator("#picture .note")).to_contain_text("This browser cannot show image/tiff")
    assert float(page.locator("#decision data").get_attribute("value") or "") == (
        api(url, picture)["score"])
    assert page.evaluate("document.querySelector('.source').naturalWidth") == 64
    expect(page.get_by_label("Heatmap opacity")).to_be_disabled()


def test_the_keyboard_is_enough_and_the_focus_can_be_seen(visit: Visit, picture: bytes) -> None:
    page = visit()
    page.on("filechooser", lambda _: None)  # from here on it is told, however quick the keys are
    expect(page.locator("#category")).to_have_value("weave")
    page.keyboard.press("Tab")
    page.keyboard.type("wash")
    expect(page.get_by_role("option")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#category")).to_have_value("washer")
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    with page.expect_file_chooser(timeout=60_000) as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([FilePayload(name=name, mimeType="image/png", buffer=picture)
                             for name in ("one.png", "two.png")])
    expect(page.locator("#picture .name")).to_have_text("two.png")
    expect(page.locator("#history button")).to_have_count(2)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Heatmap opacity")).to_have_value("60")
    page.locator("#history button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#picture .name")).to_have_text("one.png")
    expect(page.locator("#verdict .of")).to_have_text("washer")


def test_what_came_before_a_category_was_chosen_is_scored_with_it(visit: Visit, url: str,
                                                                  picture: bytes) -> None:
    page = visit()
    page.goto("about:blank")
    page.goto(f"{url}/#nobody")
    expect(page.locator("#category")).to_have_attribute("placeholder", "Type to search …")
    page.locator("#file").set_input_files([
        FilePayload(name=name, mimeType="image/png", buffer=picture)
        for name in ("one.png", "two.png", "three.png")])
    expect(page.locator("#fault")).to_contain_text("Choose a category")
    expect(page.locator("#picture .name")).to_have_text("three.png")
    page.locator("#category").fill("weave")
    page.keyboard.press("Enter")
    expect(page.locator("#history button:not(.error)")).to_have_count(3)
    expect(page.locator("#history .name").last).to_contain_text("one.png")
    expect(page.locator("#fault")).to_be_hidden()


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(
        visit: Visit, tiny_models: Path, picture: bytes) -> None:
    with served(endpoint_of(EndpointConfig(models=str(tiny_models), follow_s=3600,
                                           tokens=(token("line", TOKEN),)))) as url:
        page = visit(url, expects=(401, 401))
        page.get_by_label("Token", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token .wrong")).to_be_visible()
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.get_by_text("Continue").click()
        choose(page, picture)
        expect(page.locator("#decision")).to_be_visible()
        kept = page.evaluate("[{...sessionStorage}, localStorage.length, document.cookie]")
        assert kept == [{"igd-token": TOKEN}, 0, ""]
        page.get_by_text("Forget token").click()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_busy_endpoint_is_asked_once_more(visit: Visit, endpoint: Endpoint, picture: bytes
                                            ) -> None:
    page = visit(expects=(503, 503, 503))
    with endpoint.gate.enter(endpoint.gate.places):
        choose(page, picture)
        expect(page.get_by_role("status")).to_contain_text("busy; trying again in 1 s")
        expect(page.get_by_role("alert")).to_contain_text("The endpoint is busy")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("status")).to_contain_text("busy; trying again in 1 s")
    expect(page.locator("#decision")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(visit: Visit, picture: bytes, scheme: str) -> None:
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True,
                 is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    choose(page, picture, "x" * 200 + ".png")
    expect(page.locator("#decision")).to_be_in_viewport(ratio=1)
    page.get_by_text("Parts of the score").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.get_by_text("Take photo")).to_be_visible()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(17, 22, 28)"}[scheme]


def test_a_score_off_the_scale_is_drawn_at_the_edge_and_said_to_be(visit: Visit) -> None:
    page = visit()
    found = page.evaluate("""() => import("/page/histogram.js").then(({ histogram }) =>
      [-1e6, 2, 30, 1e6].map(score => {
        const { svg, beyond } = histogram(score, { calibration: [1, 5, 2], scores_from: 0,
          scores_to: 6, review_threshold: 4, threshold: 20 });
        return [Number(svg.querySelector("line.score").getAttribute("x1")), beyond,
          svg.querySelector("text.value").textContent];
      }))""")
    (low, said_low, _), (inside, *_), (above, said_inside, _), (high, said_high, label) = found
    assert 0 <= low < inside < above < high <= 380
    assert "below the axis" in said_low and said_inside == "" and "above the axis" in said_high
    assert label == "1000000 »"


def test_the_page_needs_no_token_and_lets_nothing_in_from_elsewhere(serve) -> None:
    client = serve(tokens=(Token(name="line", sha256="0" * 64),))
    for path in ("/", *(f"/page/{name}" for name in FILES)):
        reply = client.get(path)
        assert reply.status_code == 200 and reply.headers["cache-control"] == "no-store"
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert not re.search(r"\son\w+=|innerHTML|style=|//(?!www\.w3\.org)\w+\.", reply.text), path
    assert client.get("/page/../page.py").status_code == 401
    assert client.get("/v1/categories").status_code == 401
    folder = files("igd.serve") / "page"
    assert {entry.name for entry in folder.iterdir()} == {*FILES, "index.html"}


def test_the_page_and_the_reports_share_their_colours() -> None:
    ours, theirs = (re.findall(r"(--[\w-]+): (#\w+)", (files(package) / path).read_text())
                    for package, path in (("igd.serve", "page/style.css"),
                                          ("igd.report", "templates/report.css")))
    names = {name for name, _ in theirs if not re.fullmatch(r"--s\d", name)}
    assert [pair for pair in ours if pair[0] in names] == [
        pair for pair in theirs if pair[0] in names]
