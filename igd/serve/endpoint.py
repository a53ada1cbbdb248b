"""From the bytes of an image to an answer: decode, score, decide. What HTTP makes of it is not
known here."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from igd.config import ImageConfig
from igd.data.decoders import Decoded, decode_here, resize_here
from igd.data.images import Geometry, encode_heatmap, overlay
from igd.errors import ImageError
from igd.serve.catalogue import Catalogue
from igd.serve.config import EndpointConfig
from igd.serve.gate import Budget, Gate
from igd.serve.metrics import ByReplica, RequestMetrics
from igd.serve.models import Answer, Ask, Card

DECODERS = 4
IN_FLIGHT = 4

Image = bytes | NDArray[np.uint8]
"""A file, or its decoded pixels: uint8 (H, W, 3), RGB, contiguous."""
T = TypeVar("T")
R = TypeVar("R")


class Scorers(Protocol):
    """Wherever the models are."""

    async def open(self, category: str, version: str) -> Card:
        """As `igd.serve.models.Models.open`; IgdError in whatever way it fails."""

    async def score(self, ask: Ask) -> Answer:
        """As `igd.serve.models.Models.score`, of one image."""

    async def collect(self) -> ByReplica:
        """The metrics of the scorers, and of other ingresses."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An image with what was said of it."""

    card: Card
    decoded: Decoded
    answer: Answer
    sha256: str
    decode_s: float
    total_s: float

    @property
    def wait_s(self) -> float:
        return max(0.0, self.total_s - self.decode_s - self.answer.score_s)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the source pixels that the model saw."""
        return Geometry.of(self.decoded.width, self.decoded.height, self.card.image).box

    @property
    def heatmap_HW(self) -> NDArray[np.float32]:
        """float32, at the model's input size; of an image that was scored with one."""
        assert self.answer.heatmap_HW is not None
        return self.answer.heatmap_HW

    def heatmap(self) -> tuple[bytes, float, float]:
        """As `igd.data.images.encode_heatmap`."""
        return encode_heatmap(self.heatmap_HW)

    def overlay(self) -> bytes:
        """PNG of the model's input, coloured where it is beyond what normal images reach."""
        hi = float(self.heatmap_HW.max())
        return overlay(self._input_HWC(), self.heatmap_HW,
                       lo=min(self.card.region_threshold, hi), hi=hi)

    def _input_HWC(self) -> NDArray[np.uint8]:
        size = self.card.image.size
        return np.frombuffer(self.decoded.pixels, np.uint8).reshape(size, size, 3)


class Endpoint:
    """The endpoint of one process: what it knows of the models, its places, what it counted.

    Attributes:
        places: images that all processes take on at a time.
        gate: of those, the ones here.
        reading, bodies: requests whose bodies come in, and the bytes of all bodies.
    """

    def __init__(self, config: EndpointConfig, scorers: Scorers) -> None:
        self.config, self.scorers = config, scorers
        self.catalogue = Catalogue(config.models, scorers.open)
        self.places = config.in_flight or IN_FLIGHT
        self.gate = Gate(config.in_flight_each or self.places)
        self.reading, self.bodies = Gate(config.reading), Budget(config.body_bytes)
        self.metrics = RequestMetrics(self.catalogue, self.gate)
        self.draining = False
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")

    @property
    def ready(self) -> bool:
        """Whether there is a point in sending images here."""
        return (self.catalogue.settled and not self.draining
                and any(entry.card for entry in self.catalogue.entries))

    async def each(self, images: Sequence[T], one: Callable[[T], Awaitable[R]]) -> list[R]:
        """Does `one` for each of several images, as many at a time as places are free.

        Raises:
            OverloadedError: no place is free.
            Exception: the first that `one` raised; the others were given up.
        """
        most = max(1, self.gate.places - 1)  # and one is left for somebody else
        with self.gate.enter(min(len(images), most)) as places:
            turns = asyncio.Semaphore(places)

            async def in_turn(image: T) -> R:
                async with turns:
                    return await one(image)

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(in_turn(image)) for image in images]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def score(self, category: str, image: Image, *, heatmap: bool) -> Scored:
        """Scores one image by what answers for a category; the caller holds a place in `gate`.

        Args:
            heatmap: whether one is wanted.

        Raises:
            UnknownCategoryError, NotReadyError: as `Catalogue.card`.
            ImageError: the image cannot be used.
            StorageError: no scorer could be reached.
        """
        return await self.score_by(self.catalogue.card(category), image, heatmap=heatmap)

    async def score_by(self, card: Card, image: Image, *, heatmap: bool) -> Scored:
        """As `score`, by a model that may have been followed by another meanwhile."""
        began = time.perf_counter()
        try:
            decoded, sha256 = await asyncio.get_running_loop().run_in_executor(
                self._decoders, _decoded, image, card.image)
        except ImageError as error:
            self.metrics.rejected(card.category, error.reason)
            raise
        decode_s = time.perf_counter() - began
        answer = await self.scorers.score(Ask(
            category=card.category, version=card.version, width=decoded.width,
            height=decoded.height, pixels=decoded.pixels, heatmap=heatmap))
        self.metrics.scored(card, answer)
        return Scored(card=card, decoded=decoded, answer=answer,
                      sha256=sha256, decode_s=decode_s, total_s=time.perf_counter() - began)


def _decoded(image: Image, config: ImageConfig) -> tuple[Decoded, str]:
    """The model's input, and the checksum of what it was made from."""
    if isinstance(image, bytes):
        return decode_here(image, config), hashlib.sha256(image).hexdigest()
    return resize_here(image, config), hashlib.sha256(image.data).hexdigest()
