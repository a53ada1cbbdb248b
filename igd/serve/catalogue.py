"""Which version of each category answers: what is in production, once it has been loaded.

The endpoint looks at the registry every few seconds. A new version answers from when it was loaded
and found whole; until then, and for good where it is damaged, the one before does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from igd import registry
from igd.errors import IgdError, ObjectMissingError, StorageError
from igd.registry import production
from igd.serve.gate import NotReadyError, UnknownCategoryError
from igd.serve.models import Card

log = logging.getLogger(__name__)

LOOKERS = 8
TRY_AGAIN_S = 60.0
"""A version that could not be loaded is tried again so much later; one that could not be reached,
at the next look."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A category and what answers for it.

    Attributes:
        state: `stale` where another version is in production that could not be loaded.
        card: of the model that answers, if one does.
        sequence: the number of the promotion that was last looked at.
        failures: versions that could not be loaded, tries counted one by one.
        tried_at: monotonic time of the last try that failed of the version itself.
    """

    category: str
    state: Literal["loading", "ready", "stale", "failed"] = "loading"
    card: Card | None = None
    sequence: int = 0
    failures: int = 0
    tried_at: float = 0.0


class Catalogue:
    """The categories of a registry, kept up to date by `follow`.

    Args:
        open_model: loads a version wherever images will be scored, and says what it is.

    Attributes:
        settled: whether every category that there was at the first look has been tried.
        looked_at: monotonic time of the last look, if there was one.
        unreachable: looks that found the registry out of reach.
    """

    def __init__(self, models_uri: str, open_model: Callable[[str, str], Awaitable[Card]]) -> None:
        self._uri, self._open = models_uri, open_model
        self._entries: dict[str, Entry] = {}
        self._lookers = ThreadPoolExecutor(LOOKERS, thread_name_prefix="registry")
        self.settled = False
        self.looked_at: float | None = None
        self.unreachable = 0

    @property
    def entries(self) -> list[Entry]:
        return [self._entries[name] for name in sorted(self._entries)]

    def card(self, category: str) -> Card:
        """The model that answers for a category.

        Raises:
            UnknownCategoryError: the registry has none.
            NotReadyError: it is not loaded yet, or damaged.
        """
        entry = self._entries.get(category)
        if entry is None:
            raise (UnknownCategoryError if self.looked_at else NotReadyError)(
                "no model for this category" if self.looked_at else "models are being loaded")
        if entry.card is None:
            raise NotReadyError("this category's model is being loaded"
                                if entry.state == "loading" else
                                "this category's model cannot be used; see the endpoint's log")
        return entry.card

    async def follow(self, every_s: float) -> None:
        """Looks again and again; ends when cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Looks at the registry once, and loads what is new in production."""
        loop = asyncio.get_running_loop()
        try:
            names = await loop.run_in_executor(self._lookers, registry.category_folders, self._uri)
            newest = await asyncio.gather(*(
                loop.run_in_executor(self._lookers, production.newest, self._uri, name)
                for name in names))
        except IgdError as error:
            self.unreachable += 1
            log.warning("the registry cannot be read, models stay as they are: %s", error)
            return
        due = self._due([(name, number) for name, number in zip(names, newest, strict=True)
                         if number is not None])
        self.looked_at = time.monotonic()
        for category, sequence in due:
            await self._update(category, sequence)
        self.settled = True

    def _due(self, found: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """What has changed since the last look. A category that is gone goes on answering."""
        due = []
        for category, sequence in found:
            entry = self._entries.setdefault(category, Entry(category=category))
            failed = entry.state in ("stale", "failed")
            if sequence != entry.sequence or (
                    failed and time.monotonic() - entry.tried_at > TRY_AGAIN_S):
                due.append((category, sequence))
        return due

    async def _update(self, category: str, sequence: int) -> None:
        entry = self._entries[category]
        loop = asyncio.get_running_loop()
        try:
            promotion = await loop.run_in_executor(self._lookers, production.read, self._uri,
                                                   category, sequence)
            card = entry.card
            if card is None or card.version != promotion.version:
                card = await self._open(category, promotion.version)
        except Exception as error:  # the border: whatever is wrong with it, others go on
            log.error("category %s: promotion %d cannot be used, %s: %s", category, sequence,
                      "the version before goes on answering" if entry.card else "none answers",
                      error)
            unreached = (isinstance(error, StorageError)
                         and not isinstance(error, ObjectMissingError))
            self._entries[category] = replace(
                entry, state="stale" if entry.card else "failed", sequence=sequence,
                failures=entry.failures + 1,
                tried_at=-math.inf if unreached else time.monotonic())
            return
        self._entries[category] = replace(entry, state="ready", card=card, sequence=sequence)
