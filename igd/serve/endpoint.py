"""Bytes of one image to an answer: decode, score, decide; models are loaded at first use."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from igd import registry
from igd.config import NAME_PATTERN
from igd.data.images import decode, encode_heatmap
from igd.errors import ModelError
from igd.score.scorer import Judge, Scorer
from igd.serve.schemas import RegionReply, ScoreReply


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """What an endpoint is.

    Attributes:
        models: registry URI.
        max_body_bytes: larger bodies are refused while they stream in.
        max_models: categories kept in memory.
    """

    models: str
    fpr: float = 0.01
    review_fpr: float = 0.05
    max_body_bytes: int = 32 * 1024 * 1024
    max_models: int = 16


class UnknownCategoryError(ModelError):
    """There is no model for a category."""


class Endpoint:
    """Scores image bytes by category; one image at a time, as every path does."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._models: OrderedDict[str, tuple[Scorer, Judge]] = OrderedDict()

    def categories(self) -> list[str]:
        return registry.list_categories(self.config.models)

    def score(self, category: str, data: bytes, *, with_heatmap: bool) -> tuple[ScoreReply, bytes]:
        """Scores one image file; the second item is its heatmap as PNG, or empty.

        Raises:
            UnknownCategoryError: no such category.
            ImageError: the bytes are no image that can be used.
            ModelError: the category's model is damaged.
        """
        began = time.perf_counter()
        with self._lock:
            scorer, judge = self._model(category)
            image_HWC = decode(data, max_pixels=scorer.bundle.config.image.max_pixels)
            height, width = image_HWC.shape[:2]
            batch = scorer.score([image_HWC])
            verdict = judge.assess(float(batch.scores[0]), batch.heatmaps[0], (width, height))
        png, low, high = encode_heatmap(batch.heatmaps[0]) if with_heatmap else (b"", None, None)
        reply = ScoreReply(
            category=category, preset=scorer.bundle.preset, model_version=scorer.bundle.version,
            score=float(batch.scores[0]),
            terms={name: float(term[0]) for name, term in batch.terms.items()},
            p_value=verdict.p_value, decision=verdict.decision, alpha=verdict.alpha,
            threshold=verdict.threshold, width=width, height=height,
            regions=[RegionReply(**{name: getattr(region, name) for name in region.__slots__})
                     for region in verdict.regions],
            sha256=hashlib.sha256(data).hexdigest(), score_fingerprint=scorer.fingerprint,
            heatmap=base64.b64encode(png).decode() if png else None, heatmap_min=low,
            heatmap_max=high, milliseconds=1000 * (time.perf_counter() - began))
        return reply, png

    def _model(self, category: str) -> tuple[Scorer, Judge]:
        if category not in self._models:
            if not NAME_PATTERN.fullmatch(category) or category not in self.categories():
                raise UnknownCategoryError("no model for this category")
            bundle = registry.load_bundle(self.config.models, category)
            judge = Judge(bundle, fpr=self.config.fpr, review_fpr=self.config.review_fpr)
            self._models[category] = Scorer(bundle), judge
            while len(self._models) > self.config.max_models:
                self._models.popitem(last=False)
        self._models.move_to_end(category)
        return self._models[category]
