"""Models in memory: many categories in one process, the least recently used dropped."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igd import registry
from igd.config import ImageConfig
from igd.errors import DataError
from igd.records import TERMS
from igd.registry import Bundle
from igd.score.device import CPU, Device
from igd.score.scorer import Assessment, Judge, Scorer

HISTOGRAM_BINS = 40


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is to be known of a model before an image is sent to it.

    Attributes:
        image: how an image becomes the model's input.
        calibration: `HISTOGRAM_BINS` counts of calibration scores between `scores_from` and
            `scores_to`, for people.
        alpha, threshold: of `anomalous`; review_threshold: of `review`.
        terms: names of the parts of a score.
    """

    category: str
    version: str
    preset: str
    score_fingerprint: str
    image: ImageConfig
    created_at: str
    calibration: tuple[int, ...]
    scores_from: float
    scores_to: float
    alpha: float
    threshold: float
    review_threshold: float
    region_threshold: float
    terms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One decoded image and the model that is to score it.

    Attributes:
        width, height: of the source, in pixels.
        pixels: uint8 (size, size, 3) of the model's input, as `igd.data.decoders.Decoded` has it.
        heatmap: whether the answer is to have it; it is as large as the image.
    """

    category: str
    version: str
    width: int
    height: int
    pixels: bytes
    heatmap: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one image.

    Attributes:
        heatmap_HW: float32, at the model's input size; None where it was not asked for.
        waited_s: from when the scorer had the image to when it turned to it.
        batch: images that were scored at once.
    """

    score: float
    terms: dict[str, float]
    assessment: Assessment
    heatmap_HW: NDArray[np.float32] | None
    waited_s: float = 0.0
    score_s: float
    batch: int


class Models:
    """Scores decoded images by category and version; models are loaded at first use.

    Several threads may open models while one scores; only one may score at a time.

    Args:
        max_bytes: of weights kept; the last used model is kept in any case.
    """

    def __init__(self, models_uri: str, *, fpr: float, review_fpr: float, max_bytes: int,
                 device: Device = CPU) -> None:
        self.device, self.evicted = device, 0
        self._uri, self._rates, self._max_bytes = models_uri, (fpr, review_fpr), max_bytes
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Loaded] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Of the weights in memory, those of the shared teacher aside."""
        with self._lock:
            return sum(loaded.size for loaded in self._kept.values())

    @property
    def held(self) -> list[tuple[str, str]]:
        """Category and version of what is in memory, the most recently used last."""
        with self._lock:
            return list(self._kept)

    def open(self, category: str, version: str) -> Card:
        """Loads and checks a version, and keeps it.

        Raises:
            ModelError: it is missing or damaged.
        """
        return self._loaded(category, version).card

    def score(self, asks: Sequence[Ask]) -> list[Answer]:
        """Scores images of one category and version, in order.

        Raises:
            ModelError: the model is missing or damaged.
            DataError: pixels that are not the model's input.
        """
        loaded = self._loaded(asks[0].category, asks[0].version)
        size = loaded.card.image.size
        began = time.perf_counter()
        batch = loaded.scorer.score([_pixels(ask, size) for ask in asks])
        seconds = time.perf_counter() - began
        return [Answer(
            score=float(batch.scores[i]),
            heatmap_HW=batch.heatmaps[i] if ask.heatmap else None,
            terms={name: float(term[i]) for name, term in batch.terms.items()},
            assessment=loaded.judge.assess(float(batch.scores[i]), batch.heatmaps[i],
                                           (ask.width, ask.height)),
            score_s=seconds, batch=len(asks)) for i, ask in enumerate(asks)]

    def _loaded(self, category: str, version: str) -> _Loaded:
        key = category, version
        found = self._find(key)
        if found is None:
            with self._loading:  # one at a time: two would take twice the memory for one model
                found = self._find(key) or self._keep(key, self._load(category, version))
        return found

    def _find(self, key: tuple[str, str]) -> _Loaded | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: tuple[str, str], loaded: _Loaded) -> _Loaded:
        with self._lock:
            self._kept[key] = loaded
            while len(self._kept) > 1 and (
                    sum(kept.size for kept in self._kept.values()) > self._max_bytes):
                self._kept.popitem(last=False)
                self.evicted += 1
        return loaded

    def _load(self, category: str, version: str) -> _Loaded:
        bundle = registry.load_bundle(self._uri, category, version)
        judge = Judge(bundle, fpr=self._rates[0], review_fpr=self._rates[1])
        scorer = Scorer(bundle, self.device)
        return _Loaded(scorer=scorer, judge=judge, card=_card(bundle, scorer, judge),
                       size=sum(t.nbytes for t in bundle.model.state_dict().values()))


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    scorer: Scorer
    judge: Judge
    card: Card
    size: int


def _pixels(ask: Ask, size: int) -> NDArray[np.uint8]:
    if len(ask.pixels) != size * size * 3:
        raise DataError(f"{len(ask.pixels)} bytes of pixels; expected {size} x {size} x 3")
    return np.frombuffer(ask.pixels, np.uint8).reshape(size, size, 3)


def _card(bundle: Bundle, scorer: Scorer, judge: Judge) -> Card:
    scores = judge.calibrator.scores
    counts, edges = np.histogram(scores, HISTOGRAM_BINS)
    return Card(
        category=bundle.category, version=bundle.version, preset=bundle.preset,
        score_fingerprint=scorer.fingerprint, image=bundle.config.image,
        created_at=bundle.created_at, calibration=tuple(counts.tolist()),
        scores_from=float(edges[0]), scores_to=float(edges[-1]),
        alpha=judge.levels.anomalous.alpha, threshold=judge.levels.anomalous.threshold,
        review_threshold=judge.levels.review.threshold, region_threshold=judge.region_threshold,
        terms=tuple(name for name in TERMS if not bundle.calibration.column(name).null_count))
