"""An evaluation as lines of text, in the layout of the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from igd.report.names import visible
from igd.score.bootstrap import Estimate
from igd.score.evaluate import Evaluation, FalsePositives
from igd.score.oneclass import ProtocolResult, pooled

COLUMNS = {"image_auroc": "image AUROC", "image_ap": "image AP",
           "balanced_accuracy": "balanced acc.", "pixel_auroc": "pixel AUROC",
           "image_mean_pixel_auroc": "mean per image", "au_pro": "AU-PRO 30%"}
"""Metrics in the order of the table, and their headings."""
Figure = Estimate | float | None
"""A cell of the table; the paper's figures have no interval."""

_ROW = "  {:25}" + " {:>16}" * len(COLUMNS)


def evaluation_lines(found: Evaluation) -> list[str]:
    """A category's table: the model, the paper's figures, the baselines, the ladder."""
    tests = found.tests
    anomalous = int(tests.is_anomalous_N.sum())
    equalised = ", brightness equalised" if found.equalised else ""
    return [
        f"{found.category}: preset {found.preset}, {found.version}; {len(tests)} images, "
        f"{anomalous} anomalous{equalised}; {len(tests) / found.seconds:.1f} images/s",
        _ROW.format("", *COLUMNS.values()),
        *(_ROW.format(name, *(estimate(metrics[column]) if column in metrics else ""
                              for column in COLUMNS)) for name, metrics in table_rows(found)),
        *defect_lines(found), *false_positive_lines(found)]


def table_rows(found: Evaluation) -> Iterator[tuple[str, Mapping[str, Figure]]]:
    """A category's methods and their metrics, in the order of the table."""
    yield f"igd-ray {found.preset}", found.model.metrics
    if found.paper:
        yield "paper (IGD)", found.paper
    yield from ((name, result.metrics) for name, result in found.baselines.items())
    yield from ((f"ladder {name}", result.metrics) for name, result in found.ladder.items())


def defect_lines(found: Evaluation) -> Iterator[str]:
    """The model on each kind of defect, where there are several."""
    if found.defects:
        yield f"  igd-ray {found.preset} by kind of defect:"
    for name, kind in found.defects.items():
        pixels = "" if kind.pixel_share is None else (
            f"; {100 * kind.pixel_share:.0f}% of the anomalous pixels")
        figures = _ROW.format(f"  {visible(name)}",
                              *(estimate(kind.metrics[column]) for column in COLUMNS))
        yield f"{figures}  {kind.caught} of {kind.images} caught{pixels}"


def false_positive_lines(found: Evaluation) -> Iterator[str]:
    """The realised rates beside those asked for, in one line."""
    def told(one: FalsePositives) -> str:
        low, high = one.interval_95
        least = "" if one.used == one.asked else f" (least possible {percent(one.used)})"
        return (f"{percent(one.asked)} asked{least}, {percent(one.flagged / one.normal)} "
                f"({percent(low)}-{percent(high)})")

    if found.false_positives:
        normal = found.false_positives[0].normal
        yield (f"  of {normal} normal images flagged (95% interval): "
               + "; ".join(map(told, found.false_positives)))


def evaluation_notes(found: Evaluation) -> list[str]:
    """What a reader of the table must know of the test images."""
    tests = found.tests
    notes = [f"skipped {key} ({reason})" for key, reason in tests.skipped]
    if (tests.is_anomalous_N & tests.masked_N).any():
        if tests.without_mask:
            notes.append(f"{len(tests.without_mask)} anomalous images have no mask and are left "
                         "out of the pixel metrics")
    else:
        notes.append("no masks: image metrics only")
    notes += [f"the mask of {key} marks nothing; left out of the pixel metrics"
              for key in tests.empty_masks]
    if tests.is_anomalous_N.all():
        notes.append("no normal test images: no metric that needs both")
    if not found.rule.supported:
        notes.append("its calibration supports no false-positive rate below "
                     f"{found.rule.alpha:.4f}; that was used instead of {found.fpr}")
    return notes


def protocol_lines(found: ProtocolResult) -> list[str]:
    """Image AUROC by method and class; the interval spans those of all seeds."""
    width = max(18, *(len(name) + 2 for name in found.classes))

    def line(name: str, cells: Sequence[str]) -> str:
        return f"  {name:28}" + "".join(f"{cell:>{width}}" for cell in cells)

    rows = []
    for name, by_class in found.rows.items():
        low, high = found.spread(name)
        spread = "" if low == high else f" [{number(low)}-{number(high)}]"
        rows.append(line(name, [*(estimate(pooled(by_class[label])) if label in by_class else "-"
                                  for label in found.classes), number(found.mean(name)) + spread]))
    single, five = found.paper["single"], found.paper["ensemble"]
    return [f"{found.dataset}, preset {found.preset}: image AUROC (95% interval), mean over "
            f"classes [from seed to seed]; {found.seconds:.0f} s",
            line("", [*found.classes, "mean"]), *rows,
            f"  paper (IGD), mean of all ten classes: {number(single)}, ensemble of five "
            f"{number(five)}"]


def percent(share: float) -> str:
    """`5%`, `2.6%`."""
    return f"{100 * share:.1f}%".replace(".0%", "%")


def number(value: float | None) -> str:
    """Four characters: `.931`, `1.00`."""
    return "-" if value is None else f"{value:.3f}".removeprefix("0")[:4]


def estimate(found: Figure) -> str:
    """`.931 (.905-.954)`: the value and its 95% interval, if it has one."""
    if not isinstance(found, Estimate):
        return number(found)
    return f"{number(found.value)} ({number(found.low)}-{number(found.high)})"
