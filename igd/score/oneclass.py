"""The one-class protocol: one class of a dataset is normal, the nine others are anomalous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igd.data.oneclass import Dataset, LabelledImages
from igd.errors import DataError, IgdError
from igd.score import paper
from igd.score.baselines import baselines, sample_of
from igd.score.bootstrap import Estimate, image_metrics


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Image AUROC of every method on every class, once per seed.

    Attributes:
        rows: by method, then by class name; one estimate for a method without seeds.
        preset: of the nets.
        training: by method and class, a list of what each training said of itself.
        failed: models that could not be trained, and why; a row lacks a class where all failed.
    """

    dataset: Dataset
    preset: str
    classes: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Sequence[Estimate]]]
    training: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    seconds: float
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def paper(self) -> dict[str, float]:
        """The paper's mean AUROC over all ten classes."""
        return paper.ONE_CLASS[self.dataset]

    def mean(self, row: str) -> float:
        """Over classes, and over the seeds of each."""
        return float(np.mean([pooled(seeds).value for seeds in self.rows[row].values()]))

    def spread(self, row: str) -> tuple[float, float]:
        """Lowest and highest of the seeds' means over classes."""
        counts = [len(seeds) for seeds in self.rows[row].values()]
        means = [np.mean([seeds[i].value for seeds in self.rows[row].values()])
                 for i in range(min(counts))]
        return float(min(means)), float(max(means))

    def document(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "protocol": self.dataset, "preset": self.preset, "classes": list(self.classes),
            "failed": dict(self.failed),
            "seconds": round(self.seconds, 1), "paper_mean_of_ten_classes": self.paper,
            "rows": {row: {"mean": self.mean(row), "seeds_from_to": list(self.spread(row)),
                           "classes": {name: [vars(seed) for seed in seeds]
                                       for name, seeds in found.items()}}
                     for row, found in self.rows.items()},
            "training": self.training}


def pooled(seeds: Sequence[Estimate]) -> Estimate:
    """The seeds' mean, and an interval from the lowest to the highest of their intervals."""
    return Estimate(float(np.mean([seed.value for seed in seeds])),
                    min(seed.low for seed in seeds), max(seed.high for seed in seeds))


def check_class(data: LabelledImages, label: int, uri: str) -> None:
    """Refuses a dataset whose class cannot be trained or judged.

    Raises:
        DataError: fewer than two training images, or test images of one kind only.
    """
    name = data.class_names[label]
    trained, normal = (int((labels == label).sum())
                       for labels in (data.train_label_N, data.test_label_N))
    if trained < 2 or normal in (0, len(data.test_label_N)):
        raise DataError(f"{uri}: class {name} has {trained} training images and {normal} of the "
                        f"{len(data.test_label_N)} test images; expected at least 2 to train, and "
                        "test images of this class and of others")


def auroc(data: LabelledImages, label: int, scores_N: NDArray[np.float64]) -> Estimate:
    """Image AUROC of scores of the test images, where one class is normal."""
    found = image_metrics(data.test_label_N != label, scores_N)["image_auroc"]
    assert found is not None  # see check_class
    return found


def baseline_aurocs(data: LabelledImages, labels: Sequence[int],
                    ) -> tuple[dict[str, dict[int, Estimate]], dict[int, str]]:
    """The baselines' AUROC by name and label; the teacher sees the test images once.

    Returns:
        the AUROCs, and why a label lacks some, such as normals that are all the same picture.
    """
    test = sample_of(data.test_NHWC, _sizes(data.test_NHWC))
    found: dict[str, dict[int, Estimate]] = {}
    failed: dict[int, str] = {}
    for label in labels:
        normal_NHWC = data.train_NHWC[data.train_label_N == label]
        train = sample_of(normal_NHWC, _sizes(normal_NHWC))
        try:
            for name, scores in baselines(train, test):
                found.setdefault(name, {})[label] = auroc(data, label, scores.scores_N)
        except IgdError as error:
            failed[label] = str(error)
    return found, failed


def _sizes(images_NHWC: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.full((len(images_NHWC), 2), images_NHWC.shape[1])
