"""What a page says of tables that are made here, rows of an attacker's archive among them."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from datetime import date as Date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from html_pages import checked
from numpy.typing import NDArray
from PIL import Image

from igd import tables
from igd.errors import DataError, ImageError
from igd.records import HEATMAPS, SCORES, SOURCES
from igd.report.charts import score_histogram
from igd.report.names import visible
from igd.report.pictures import Original, Pictures
from igd.report.run import Normals, render_run_report
from igd.report.summary import Row, summarize

DATE = Date(2026, 11, 23)
RUN = "2026-11-23-0123456789ab-g2"
SIZE = 16
EVIL = "<script>alert(1)</script>"
BIDI = "\u202egpj.exe"


def row(number: int, *, category: str = "bottle", **changes: Any) -> Row:
    """A rejected row, or a scored one where `score` is given."""
    values: Row = dict.fromkeys(SCORES.names)
    values |= {
        "image_id": f"{category}-{number:04d}", "source_uri": "s3://line/dump.tar",
        "source_version": "v1", "member": f"img/{number:04d}.png", "ordinal": number,
        "run_id": RUN, "generation": 2, "status": "rejected", "sha256": "0" * 64,
        "schema_version": 1, "scored_at": datetime(2026, 11, 23, 2, number % 60, tzinfo=UTC),
        "date": DATE, "category": category}
    if "score" in changes:
        values |= {"status": "scored", "width": 40, "height": 20, "preset": "fast",
                   "p_value": 0.25, "decision": "normal", "alpha": 0.125, "threshold": 3.0,
                   "regions": [], "model_version": "20260101T000000-aaaaaaaa"}
    return values | changes


def publish(out: Path, rows: Sequence[Row] = (), sources: Sequence[Row] = ()) -> str:
    at = str(out)
    files = []
    for category in sorted({found["category"] for found in rows}):
        mine = [found for found in rows if found["category"] == category]
        files.append(tables.stage(at, "scores", pa.Table.from_pylist(mine, schema=SCORES),
                                  date=DATE, category=category, stem=f"{RUN}-{len(files):08d}"))
    listed = pa.Table.from_pylist([source(**changes) for changes in sources], schema=SOURCES)
    tables.append_once(at, "sources", [tables.stage(
        at, "sources", listed, date=DATE, category=None, stem=f"{RUN}-0")], run_id=RUN)
    tables.replace_scores(at, files, date=DATE, categories=sorted({r["category"] for r in rows}),
                          run_id=RUN, metadata={})
    return at


def source(**changes: Any) -> Row:
    return {"run_id": RUN, "source_uri": "s3://line/dump.tar", "source_version": "v1",
            "kind": "tar", "members": 9, "bytes": 2048, "status": "complete", "detail": None,
            "date": DATE, **changes}


def keep_heatmap(at: str, image_id: str, *, shard: int, category: str = "bottle",
                 png: bytes = b"png", stem: str = RUN) -> None:
    rows = pa.Table.from_pylist([{
        "run_id": RUN, "image_id": image_id, "heatmap": png, "heatmap_min": 0.0,
        "heatmap_max": 8.0, "date": DATE, "category": category}], schema=HEATMAPS)
    tables.append_once(at, "heatmaps", [tables.stage(
        at, "heatmaps", rows, date=DATE, category=category, stem=f"{stem}-{shard:08d}")],
        run_id=f"{image_id}-{shard}")


class Camera:
    """Pictures of one colour, and a record of what was asked for."""

    def __init__(self, originals: Mapping[str, Original] | None = None) -> None:
        self.originals = originals
        self.asked: list[str] = []
        self.decoded = 0
        self.scales: list[tuple[float, float]] = []
        self.pictures = Pictures(load=self.load, overlay=self.overlay, decode_heatmap=self.decode)

    def load(self, rows: Sequence[Row]) -> Mapping[str, Original]:
        self.asked += [found["image_id"] for found in rows]
        pixels = np.full((SIZE, SIZE, 3), 90, np.uint8)
        return self.originals if self.originals is not None else {
            image_id: Original(pixels_HWC=pixels, box=(10, 0, 30, 20)) for image_id in self.asked}

    def overlay(self, image_HWC: NDArray[np.uint8], heatmap_HW: NDArray[np.float32], *,
                lo: float, hi: float) -> bytes:
        assert image_HWC.shape == (*heatmap_HW.shape, 3)
        self.scales.append((lo, hi))
        sink = io.BytesIO()
        Image.fromarray(image_HWC).save(sink, "PNG")
        return sink.getvalue()

    def decode(self, png: bytes, lo: float, hi: float) -> NDArray[np.float32]:
        if png == b"damaged":
            raise ImageError("corrupt", "not a PNG")
        self.decoded += 1
        return np.linspace(lo, hi, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)


def no_normals(run_id: str, category: str, version: str) -> Normals | None:
    return None


def render(at: str, camera: Camera | None = None, *, normals: Any = no_normals,
           top: int = 24) -> str:
    page = render_run_report(at, DATE, pictures=(camera or Camera()).pictures, normals=normals,
                             top=top)
    return checked(page)


def words(page: str) -> str:
    """The page's text, tags taken out and white space folded."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)
    return " ".join(html.unescape(text).split())


def gallery(page: str) -> list[str]:
    """Names of the tiles, in order."""
    return re.findall(r'<div class="name" title="[^"]*/(\d+)\.png">', page)


def test_names_from_archives_are_text_and_nothing_else(tmp_path: Path) -> None:
    names = [EVIL, "=cmd|' /C calc'!A0", BIDI, "a\x00b\nc", '"><img src=x onerror=alert(1)>',
             "{{ 7 * 7 }}"]
    rows = [row(i, member=name, score=float(i)) for i, name in enumerate(names)]
    rows += [row(50 + i, member=name, reject_reason="corrupt", reject_detail=name)
             for i, name in enumerate(names)]
    rows.append(row(90, category="_unrouted", member=EVIL, reject_reason="unrouted"))
    page = render(publish(tmp_path, rows, [{"source_uri": f"s3://line/{name}", "detail": name}
                                           for name in names]))
    assert EVIL not in page and html.escape(EVIL) in page
    assert "\u202e" not in page and "\\u202egpj.exe" in page
    assert "=cmd|" in words(page) and "{{ 7 * 7 }}" in words(page)


def test_invisible_characters_are_shown_and_others_left_alone() -> None:
    assert visible("Straße/日本.png") == "Straße/日本.png"
    assert visible("a\u202eb\u200bc\x1b\x07") == "a\\u202eb\\u200bc\\u001b\\u0007"


def test_counts_of_the_head_and_of_each_category(tmp_path: Path) -> None:
    rows = [row(i, score=1.0) for i in range(5)]
    rows += [row(10 + i, score=4.0, decision="review") for i in range(3)]
    rows += [row(20 + i, score=9.0, decision="anomalous") for i in range(2)]
    rows += [row(30, reject_reason="empty"), row(31, category="_unrouted",
                                                 reject_reason="unrouted")]
    page = render(publish(tmp_path, rows, [{}]))
    said = words(page)
    assert "12 planned 10 scored 2 rejected 2 anomalous 3 review 5 normal" in said
    assert "bottle fast 10 2 3 5 1 0.125 3 20260101T000000-aaaaaaaa" in said
    assert "_unrouted 0 0 0 0 1 no image scored" in said
    assert f"run {RUN} (generation 2) scored 2026-11-23 02:00:00 to 2026-11-23 02:31:00" in said
    assert "about 1 would be called anomalous at this alpha" in said
    assert "Preset fast : Gaussian descriptors on frozen ImageNet features; not the net" in said


def test_the_highest_scores_come_first_and_ties_go_by_distance(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(40)
    rows = [row(int(i), score=min(1.0, i / 30), global_gsvdd_distance=float(i),
                local_gsvdd_distance=float(i), preset="paper") for i in order]
    page = render(publish(tmp_path, rows), top=14)
    expected = [f"{i:04d}" for i in [*range(39, 25, -1), 0, 1, 2]]
    assert gallery(page) == expected
    assert "Most normal" in page


def test_equal_scores_of_preset_fast_go_by_the_dense_distance(tmp_path: Path) -> None:
    rows = [row(i, score=1.0, dense_distance=float(7 * i % 10)) for i in range(10)]
    page = render(publish(tmp_path, rows), top=10)
    assert gallery(page) == [f"{i:04d}" for i in sorted(range(10), key=lambda i: -(7 * i % 10))]


def test_models_share_the_gallery_and_only_what_is_shown_is_asked_for(tmp_path: Path) -> None:
    rows = [row(i, category=name, score=float(i)) for name in ("bottle", "cable")
            for i in range(30)]
    camera = Camera()
    page = render(publish(tmp_path, rows), camera, top=10)
    assert gallery(page) == ["0029", "0028", "0027", "0026", "0025", "0000", "0001", "0002"] * 2
    assert len(camera.asked) == 16


def test_a_tile_shows_image_heatmap_and_boxes_in_source_pixels(tmp_path: Path) -> None:
    box = {"x0": 12, "y0": 3, "x1": 18, "y1": 9, "area": 30, "peak": 7.0}
    at = publish(tmp_path, [row(1, score=5.0, regions=[box], decision="anomalous")])
    keep_heatmap(at, "bottle-0001", shard=0)
    page = render(at)
    assert page.count("data:image/webp") == 2
    assert 'viewBox="10 0 20 20"' in page
    assert '<rect x="12" y="3" width="6" height="6"/>' in page
    assert "40 \N{MULTIPLICATION SIGN} 20 px, 50% of it seen, 1 region" in words(page)


def test_heatmaps_of_other_images_and_shards_stay_unread(tmp_path: Path) -> None:
    at = publish(tmp_path, [row(i, score=float(i)) for i in range(9)])
    keep_heatmap(at, "bottle-0008", shard=3)
    keep_heatmap(at, "bottle-0004", shard=3)
    keep_heatmap(at, "bottle-0007", shard=5)
    keep_heatmap(at, "bottle-0006", shard=3, stem="2026-11-23-ffffffffffff-g1")
    camera = Camera({f"bottle-{i:04d}": Original(shard=3) for i in range(9)})
    render(at, camera, top=3)
    assert camera.decoded == 1


def test_colour_begins_where_normal_heatmaps_end_and_is_one_scale(tmp_path: Path) -> None:
    at = publish(tmp_path, [row(i, score=float(i)) for i in range(2)])
    for i in range(2):
        keep_heatmap(at, f"bottle-{i:04d}", shard=i)
    asked = []

    def normals(run_id: str, category: str, version: str) -> Normals:
        asked.append((run_id, category, version))
        return Normals(scores=np.linspace(0, 3, 50), heatmap_peaks=np.array([1.0, 5.0, 6.0]))

    camera = Camera()
    page = render(at, camera, normals=normals)
    assert camera.scales == [(5.0, 8.0)] * 2
    assert asked == [(RUN, "bottle", "20260101T000000-aaaaaaaa")]
    assert "calibration normals (50)" in page


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    at = publish(tmp_path, [row(i, score=float(i)) for i in range(4)])
    keep_heatmap(at, "bottle-0003", shard=0)
    keep_heatmap(at, "bottle-0002", shard=0, png=b"damaged")
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    page = render(at, Camera({"bottle-0003": Original(problem="vanished"),
                              "bottle-0001": Original(pixels_HWC=pixels)}))
    tiles = [words(tile) for tile in page.split('<figure class="tile">')[1:]]
    assert tiles[0].startswith("image gone: vanished normal 3")
    assert tiles[1].startswith("image gone: not found no heatmap kept normal 2")
    assert tiles[2].startswith("no heatmap kept normal 1")
    assert "calibration is out of reach" in page


def test_rejects_are_listed_by_reason_twenty_of_each(tmp_path: Path) -> None:
    rows = [row(i, reject_reason="truncated", reject_detail=f"cut at {i}") for i in range(25)]
    rows += [row(100, reject_reason="empty", reject_detail="0 bytes")]
    said = words(render(publish(tmp_path, rows)))
    assert "No image could be scored" in said
    assert re.search("truncated 25 s3://line/dump.tar . img/0000.png cut at 0", said)
    assert "img/0019.png cut at 19 and 5 more" in said and "img/0020.png" not in said
    assert said.index("truncated 25") < said.index("empty 1")


def test_sources_that_ended_oddly_stand_first_and_marked(tmp_path: Path) -> None:
    page = render(publish(tmp_path, [row(0, score=1.0)], [
        {"source_uri": "s3://line/a.tar"},
        {"source_uri": "s3://line/b.tar", "status": "truncated", "detail": "ends in a header"},
        {"source_uri": "s3://line/c.tar", "run_id": "2026-11-23-0123456789ab-g1"}]))
    assert words(page).index("b.tar") < words(page).index("a.tar")
    assert page.count('<tr class="odd">') == 1
    assert "1 source did not end as expected" in words(page)
    assert "c.tar" not in page  # of a generation whose rows were replaced


def test_a_run_without_images_has_a_page_and_an_unpublished_date_has_none(tmp_path: Path) -> None:
    at = publish(tmp_path, sources=[{"members": 0, "bytes": 0}])
    said = words(render(at))
    assert "published with no images" in said and "0 planned 0 scored 0 rejected" in said
    with pytest.raises(DataError, match="nothing is published for 2026-11-24"):
        render_run_report(at, Date(2026, 11, 24), pictures=Camera().pictures, normals=no_normals)


@pytest.mark.parametrize("scores", [[2.0], [3.0] * 5, [0.0, 1e9], [-5.0, -4.0], [1e-12, 2e-12]])
def test_any_scores_can_be_drawn(scores: list[float]) -> None:
    chart = score_histogram(np.array(scores), np.array([0.0, 0.0]), [3.0])
    checked(chart.svg)


def test_extreme_scores_do_not_stretch_the_axis() -> None:
    scores = np.concatenate([np.linspace(0, 3, 998), [1e6, -1e6]])
    assert score_histogram(scores, None, [2.9]).beyond == 2
    assert score_histogram(scores[:998], None, [2.9]).beyond == 0


def test_scores_of_two_model_versions_are_kept_apart(tmp_path: Path) -> None:
    rows = [row(i, score=float(i), model_version=f"v{i % 2}") for i in range(8)]
    rows.append(row(9, reject_reason="empty"))
    said = words(render(publish(tmp_path, rows)))
    assert "bottle fast 4 0 0 4 1 0.125 3 v0 bottle fast 4 0 0 4 0.125 3 v1" in said


def test_a_date_in_several_files_adds_up(tmp_path: Path) -> None:
    rows = [row(i, score=float(i)) for i in range(6)]
    at = publish(tmp_path, rows)
    one = summarize(at, DATE, top=3)
    (file,) = tables.live_files(at, "scores", DATE)
    two = type(one)()
    for half in (slice(0, 3), slice(3, 6)):
        two.add(tables.read(at, "scores", DATE, files=[file]).slice(half.start, 3), 3)
    (model,), (other,) = one.models.values(), two.models.values()
    assert model.highest == [{k: r[k] for k in model.highest[0]} for r in other.highest]
    assert (model.scored, model.decisions) == (other.scored, other.decisions)


def test_the_queries_of_the_page_run(tmp_path: Path) -> None:
    at = publish(tmp_path / "it's", [row(0, score=9.0, decision="anomalous"),
                                     row(1, reject_reason="empty")])
    code = re.search(r"<pre><code>(.*?)</code>", render(at), re.S)
    assert code is not None
    with contextlib.redirect_stdout(io.StringIO()):
        exec(html.unescape(code[1]), {})
