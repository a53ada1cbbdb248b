"""What the pages of an evaluation and of a protocol say of results that are made here."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import checked, chromium
from numpy.typing import NDArray
from PIL import Image

from igd import cli
from igd.data.datasets import TestSet
from igd.report.charts import labelled_histogram
from igd.report.evaluation import render_evaluation, roc_curve
from igd.report.misses import heatmap_scale
from igd.report.outline import MOST_RUNS, outline
from igd.report.protocol import render_protocol
from igd.report.text import evaluation_lines, number
from igd.score.bootstrap import Estimate, image_metrics, pixel_metrics
from igd.score.conformal import Rule
from igd.score.evaluate import NO_PIXELS, DefectResult, Evaluation, FalsePositives, MethodResult
from igd.score.metrics import image_auroc
from igd.score.oneclass import ProtocolResult

SIZE = 16
EVIL = "<script>alert(1)</script>"
BIDI = "\u202egpj.exe"
THRESHOLD = 3.0
NORMAL, ANOMALOUS = (0.5, 4.0, 1.0, 2.0), (2.5, 9.0, 1.5, 7.0, 3.5)
"""Scores; one false alarm, two missed."""


def evaluation(category: str = "bottle", *, normal: tuple[float, ...] = NORMAL,
               anomalous: tuple[float, ...] = ANOMALOUS, keys: tuple[str, ...] | None = None,
               masks: bool = True, skipped: tuple[tuple[str, str], ...] = (),
               defects: dict[str, DefectResult] | None = None,
               false_positives: tuple[FalsePositives, ...] = ()) -> Evaluation:
    """Heatmaps are 0 but for a square, which has the score's value and is the mask."""
    scores_N = np.array([*normal, *anomalous])
    is_anomalous_N = np.arange(len(scores_N)) >= len(normal)
    keys = keys or tuple(f"test/{'crack' if bad else 'good'}/{i:03d}.png"
                         for i, bad in enumerate(is_anomalous_N))
    square_HW = np.zeros((SIZE, SIZE), bool)
    square_HW[4:8, 2:10] = True
    heatmaps_NHW = (scores_N[:, None, None] * square_HW).astype(np.float32)
    mask_NHW = is_anomalous_N[:, None, None] & square_HW & masks
    tests = TestSet(
        images_NHWC=np.full((len(scores_N), SIZE, SIZE, 3), 90, np.uint8),
        size_N2=np.full((len(scores_N), 2), (40, 20)), keys=keys,
        defects=tuple(key.split("/")[1] for key in keys), is_anomalous_N=is_anomalous_N,
        mask_NHW=mask_NHW, masked_N=~is_anomalous_N | masks, skipped=skipped, empty_masks=(),
        without_mask=() if masks else tuple(np.array(keys)[is_anomalous_N].tolist()))

    def judged(scores: NDArray[np.float64], flagged: NDArray[np.bool_] | None) -> MethodResult:
        pixels = (pixel_metrics(mask_NHW, heatmaps_NHW, resamples=20)
                  if mask_NHW.any() and flagged is not None else NO_PIXELS)
        return MethodResult(scores_N=scores, metrics={
            **image_metrics(is_anomalous_N, scores, flagged, resamples=20), **pixels})

    return Evaluation(
        category=category, preset="fast", version="20260101T000000-aaaaaaaa", tests=tests,
        fpr=0.05, rule=Rule(alpha=0.05, threshold=THRESHOLD, supported=True, exceed=1,
                  interval_95=(0.0, 0.2)),
        model=judged(scores_N, scores_N > THRESHOLD), heatmaps_NHW=heatmaps_NHW,
        normal_scores_M=np.linspace(0, 3.5, 40), defects=defects or {},
        false_positives=false_positives,
        baselines={"mean_brightness": judged(-scores_N, None), "knn": judged(scores_N % 4, None)},
        ladder={"shared_full": judged(scores_N, None)}, seconds=0.5, equalised=False)


class Painter:
    """An overlay of the image itself, and a record of the scales it was asked for."""

    def __init__(self) -> None:
        self.scales: set[tuple[float, float]] = set()

    def __call__(self, image_HWC: NDArray[np.uint8], heatmap_HW: NDArray[np.float32], *,
                 lo: float, hi: float) -> bytes:
        assert image_HWC.shape == (*heatmap_HW.shape, 3)
        self.scales.add((lo, hi))
        sink = io.BytesIO()
        Image.fromarray(image_HWC).save(sink, "PNG")
        return sink.getvalue()


def render(*found: Evaluation, painter: Painter | None = None, **facts: str | None) -> str:
    return checked(render_evaluation(found, overlay=painter or Painter(), facts=facts))


def words(page: str) -> str:
    """The page's text, tags taken out, white space folded and dashes made ASCII."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S)
    return " ".join(html.unescape(text).replace("\N{EN DASH}", "-").split())


def tiles(page: str) -> list[tuple[int, str]]:
    """Number and `missed`, `false alarm` or nothing of each tile, in order."""
    return [(int(re.search(r"/(\d+)\.png", tile)[1]),  # type: ignore[index]
             "".join(re.findall(r'<b class="mark">(.*?)</b>', tile)))
            for tile in page.split('<figure class="tile')[1:]]


def test_names_from_a_tree_are_text_and_nothing_else() -> None:
    names = (EVIL, BIDI, "a\udcff\x00b", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "x")
    found = evaluation(normal=NORMAL[:2], anomalous=ANOMALOUS[:4],
                       keys=tuple(f"test/{name}/{i}.png" for i, name in enumerate(names)),
                       skipped=((EVIL, "truncated"), (f"{BIDI}\udcff", "corrupt")))
    page = render(dataclasses.replace(found, category=EVIL), data=f"/data/{EVIL}{BIDI}\udcff")
    page.encode()
    assert EVIL not in page and html.escape(EVIL) in page
    assert "\u202e" not in page and "\\u202egpj.exe" in page and "a\\udcff\\u0000b" in page
    assert "{{ 7 * 7 }}" in words(page)


def test_kinds_of_defects_have_a_table_of_their_own() -> None:
    kind = DefectResult(images=7, caught=3, pixel_share=0.7188,
                        metrics=evaluation().model.metrics)
    found = evaluation(defects={EVIL: kind, "crack": dataclasses.replace(kind, pixel_share=None)})
    said = words(render(found))
    assert "By kind of defect" in said and "By kind of defect" not in words(render(evaluation()))
    assert f"{EVIL} 3 of 7 42.9% 71.9% .800" in said and "crack 3 of 7 42.9% - .800" in said
    lines = [" ".join(line.split()) for line in evaluation_lines(found)]
    assert any(line.startswith("crack .800") and line.endswith("3 of 7 caught") for line in lines)
    assert any(line.endswith("3 of 7 caught; 72% of the anomalous pixels") for line in lines)


def test_realised_rates_stand_beside_those_asked_for() -> None:
    line = evaluation_lines(evaluation(false_positives=(
        FalsePositives(asked=0.01, used=0.04, flagged=0, normal=20),
        FalsePositives(asked=0.05, used=0.05, flagged=3, normal=20))))[-1]
    assert line == ("  of 20 normal images flagged (95% interval): 1% asked (least possible 4%), "
                    "0% (0%-16.8%); 5% asked, 15% (3.2%-37.9%)")


def test_the_numbers_of_the_table_are_those_of_the_evaluation() -> None:
    found = evaluation()
    page = render(found)
    rows = dict(re.findall(r"<tr[^>]*><th>([^<]*)</th>(.*?)</tr>", page, re.S))
    assert list(rows) == ["igd-ray fast", "paper (IGD)", "mean_brightness", "knn",
                          "ladder shared_full"]
    first = re.search(r'<td class="n">([^<]*)<small class="interval">([^<]*)<',
                      rows["igd-ray fast"])
    auroc = found.model.metrics["image_auroc"]
    assert first is not None and auroc is not None and auroc.value == 0.8
    assert first[1] == ".800"
    assert first[2] == f"{number(auroc.low)}&ndash;{number(auroc.high)}"
    assert words(rows["paper (IGD)"]) == ".998"
    said = words(page)
    assert "anomalous images caught 3 of 5 60.0% normal images flagged 1 of 4 25.0%" in said
    assert "Preset fast : Gaussian descriptors on frozen ImageNet features; not the net" in said
    assert "version 20260101T000000-aaaaaaaa 9 test images, 5 anomalous; 18.0 images/s" in said
    assert "igd-ray fast .800 mean_brightness .200 knn" in said  # of the curves


def test_the_worst_misses_come_first_and_are_marked() -> None:
    page = render(evaluation())
    assert tiles(page) == [(6, "missed"), (4, "missed"), (8, ""), (7, ""), (5, ""),
                           (1, "false alarm"), (3, ""), (2, ""), (0, "")]
    said = words(page)
    assert "Anomalous, lowest scores 5; 2 missed normal 1.5 threshold 3 missed" in said
    assert "Normal, highest scores 4; 1 false alarm anomalous 4 threshold 3 false alarm" in said
    assert "test/crack/006.png crack, 40 \N{MULTIPLICATION SIGN} 20 px" in said


def test_a_score_at_the_threshold_is_normal() -> None:
    page = render(evaluation(normal=(THRESHOLD,), anomalous=(THRESHOLD,)))
    assert tiles(page) == [(1, "missed"), (0, "")]


def test_many_images_do_not_make_a_large_page() -> None:
    many = evaluation(normal=tuple(np.linspace(0, 4, 300)), anomalous=tuple(np.linspace(2, 9, 700)))
    page = render(many)
    assert [place for place, _ in tiles(page)] == [
        *range(300, 312), *range(299, 293, -1), 999, 998, 997, 0, 1, 2]
    assert "12 of 700; " in words(page)
    assert len(page) < 500_000
    few = render(*(evaluation(f"c{i}") for i in range(31)))
    assert len(tiles(few)) == 31 * 8  # 4 anomalous, 2 normal, 1 and 1 as good examples
    assert "and 5 more" in words(render(evaluation(skipped=tuple(
        (f"{i:02d}.png", "empty") for i in range(25)))))


def test_normal_images_are_not_painted_red() -> None:
    painter, found = Painter(), evaluation()
    render(found, painter=painter)
    (scale,) = painter.scales
    assert scale == (1.5, pytest.approx(8.2))  # median of normal peaks, 90% of anomalous ones
    weak = evaluation(normal=(1, 2, 3, 10), anomalous=(0.1, 0.2))
    found_scale = heatmap_scale(weak)
    assert (7.9 - found_scale.lo) / (found_scale.hi - found_scale.lo) == pytest.approx(1 / 3)
    assert heatmap_scale(evaluation(normal=())).lo == pytest.approx(4.1)


def test_without_masks_nothing_is_outlined_and_the_page_says_so() -> None:
    page = render(evaluation(masks=False))
    assert "no masks: image metrics only" in words(page)
    assert '<path class="halo"' not in page
    assert render(evaluation()).count('<path class="halo"') == len(ANOMALOUS)


def test_without_normal_images_there_is_no_curve() -> None:
    page = render(evaluation(normal=()))
    assert "no normal test images: no metric that needs both" in words(page)
    assert "ROC curves" not in page and "false alarm" not in page
    assert page.count("<svg") == 1 + page.count('class="halo"')


def test_categories_stand_beside_the_best_baseline_and_the_paper() -> None:
    alone = words(render(evaluation()))
    one, two = evaluation(), evaluation("part", normal=(0, 1), anomalous=(5, 6), masks=False)
    said = words(render(one, two))
    assert "2 categories" in said and "2 categories" not in alone
    knn = image_auroc(one.tests.is_anomalous_N, one.baselines["knn"].scores_N)
    best = {name: result.document()["image_auroc"] for name, result in one.baselines.items()}
    assert max(best, key=best.__getitem__) == "knn" and best["knn"] == knn and knn is not None
    assert f"bottle fast .800 {knn:.3f}".replace(" 0.", " .") + " knn .998" in said
    assert re.search(r"part fast 1.00 \S+ \S+ - - - - - mean .900", said)
    assert "mean per image .910" in said  # the paper's mean


def test_facts_are_printed_and_unknown_ones_left_out() -> None:
    said = words(render(evaluation(), data="s3://mvtec", commit=None))
    assert "data s3://mvtec" in said and "commit" not in said


def test_the_area_under_the_drawn_curve_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    truth_N, scores_N = rng.random(200) < 0.3, rng.integers(0, 20, 200) / 4  # with ties
    x, y = roc_curve(truth_N, scores_N + truth_N)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(image_auroc(truth_N, scores_N + truth_N))


def test_an_outline_runs_along_the_edges_of_pixels() -> None:
    mask_HW = np.zeros((6, 7), bool)
    assert outline(mask_HW) == ""
    mask_HW[2:4, 1:6] = True
    assert outline(mask_HW) == "M1 2h5M1 4h5M1 2v2M6 2v2"
    mask_HW[:] = True
    assert outline(mask_HW) == "M0 0h7M0 6h7M0 0v6M7 0v6"


def test_the_outline_of_a_ragged_mask_is_coarser_and_covers_it() -> None:
    ragged_HW = np.random.default_rng(0).random((255, 255)) < 0.5
    path = outline(ragged_HW)
    assert path.count("M") <= MOST_RUNS
    assert path.startswith("M0 0h256")


@pytest.mark.parametrize("scores", [[], [2.0], [-1e9, 1e9]])
def test_any_scores_of_two_classes_can_be_drawn(scores: list[float]) -> None:
    chart = labelled_histogram(np.array([1.0]), np.array(scores), np.array([0.0, 0.0]), 3.0)
    checked(chart.svg)


def protocol(**changes: Any) -> ProtocolResult:
    def estimates(*values: float) -> list[Estimate]:
        return [Estimate(value, value - 0.02, value + 0.01) for value in values]

    training = {"seed": 0, "images": 6000, "seconds": 12.3, "scoring_seconds": 1.0, "phases": {
        "distil": {"first": {"mse": 1.5}, "last": {"mse": 0.25}},
        "em": {"first": {"critic": 0.5, "lr": 1e-4}, "last": {"critic": 0.125, "lr": 1e-4}}}}
    classes = ("T-shirt/top", "Dress")
    return ProtocolResult(**{
        "dataset": "fashion-mnist", "preset": "small", "classes": classes, "seconds": 90.0,
        "rows": {"igd": {classes[0]: estimates(0.9, 0.8), classes[1]: estimates(0.7, 0.72)},
                 "igd: descriptor alone": {name: estimates(0.6, 0.5) for name in classes},
                 "knn": {name: estimates(0.95) for name in classes}},
        "training": {"igd": {name: [training, {**training, "seed": 1}] for name in classes}},
        **changes})


def test_the_protocols_table_has_classes_means_spreads_and_the_papers_figures() -> None:
    page = checked(render_protocol(protocol(), facts={"seeds": "2"}))
    said = words(page)
    assert ("mean paper T-shirt/top Dress igd .780 [.760-.800] .933 "
            ".850 .780-.910 .710 .680-.730") in said
    assert "igd: descriptor alone .550 [.500-.600] .550" in said and "knn .950 .950" in said
    assert "Preset small : the networks of the IGD paper, narrow. Image AUROC" in said
    assert "2 of 10 classes; 90 s" in said and ".933 for one model and .936 for an" in said
    assert page.count("<svg") == 1 and "igd: descriptor alone</text>" in page
    assert "seeds 2" in said


def test_the_protocols_trainings_are_listed_with_their_first_and_last_terms() -> None:
    page = checked(render_protocol(protocol(), facts={}))
    table = words(page[page.index("<details>"):page.index("</details>")])
    assert "igd 4 trainings class seed images seconds mse distil critic em lr em" in table
    assert "Dress 1 6,000 12.3 1.5 → 0.25 0.5 → 0.125 0.0001 → 0.0001" in table


def test_the_ablation_stands_beside_the_papers() -> None:
    rows = {name: {"cat": [Estimate(0.6, 0.5, 0.7)]} for name in ("ms_ssim", "kd_gsvdd", "igd")}
    found = protocol(dataset="cifar-10", classes=("cat",), rows=rows, training={})
    said = words(checked(render_protocol(found, facts={})))
    for row in ("ms_ssim .600 .685", "kd_gsvdd .600 .819", "igd .600 .823"):
        assert row in said
    assert "Training" not in said


def test_names_of_a_protocol_are_text() -> None:
    found = protocol(classes=(EVIL,), rows={f"{EVIL}$x$": {EVIL: [Estimate(0.5, 0.4, 0.6)]}},
                     training={EVIL: {EVIL: []}})
    page = checked(render_protocol(found, facts={EVIL: EVIL}))
    assert EVIL not in page


@pytest.mark.usefixtures("one_thread")
def test_evaluate_writes_a_page_that_fits_a_phone(
        tiny_data: Path, tiny_models: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    cli.app(["evaluate", str(tiny_data), "--models", str(tiny_models), "--html", str(file)],
            standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    said = words(checked(file.read_text()))
    assert "washer preset fast" in said and "weave preset fast" in said
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url.split(":")[0]))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(file.resolve().as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
        assert page.locator("img").count() == 2 * 2 * 12
    assert complaints == [] and set(asked) <= {"file", "data"}
