"""Models in this process: an endpoint without a cluster, and one replica of a scorer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from igd.errors import IgdError
from igd.serve.metrics import ByReplica, of_models
from igd.serve.models import Answer, Ask, Card, Models


class LocalScorers:
    """Scores in one thread of this process, and loads models in another."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loader")

    async def open(self, category: str, version: str) -> Card:
        return await asyncio.get_running_loop().run_in_executor(
            self._loading, self.models.open, category, version)

    async def score(self, ask: Ask) -> Answer:
        answer, = await self.score_many([ask])
        if isinstance(answer, IgdError):
            raise answer
        return answer

    async def score_many(self, asks: Sequence[Ask]) -> list[Answer | IgdError]:
        """Scores images of any models; a forward pass never mixes two, and one that fails takes
        no other along."""
        asked = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(
            self._scoring, self._score_all, asks, asked)

    async def collect(self) -> ByReplica:
        return of_models(self.models)

    def _score_all(self, asks: Sequence[Ask], asked: float) -> list[Answer | IgdError]:
        waited_s = time.perf_counter() - asked
        groups: dict[tuple[str, str], list[int]] = {}
        for i, ask in enumerate(asks):
            groups.setdefault((ask.category, ask.version), []).append(i)
        found: dict[int, Answer | IgdError] = {}
        for places in groups.values():
            found.update(zip(places, self._score_alike([asks[i] for i in places]), strict=True))
        return [replace(answer, waited_s=waited_s) if isinstance(answer, Answer) else answer
                for answer in (found[i] for i in range(len(asks)))]

    def _score_alike(self, asks: Sequence[Ask]) -> Sequence[Answer | IgdError]:
        try:
            return self.models.score(asks)
        except IgdError as error:
            if len(asks) == 1:
                return [error]
            return [answer for ask in asks for answer in self._score_alike([ask])]
