"""Whose row an image has: within a date and category, that of the run which published last.

A file of another run that holds such rows leaves the table in the very commit that brings the
new ones, and the rest of its rows enter it again under the other run's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date as Date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igd import tables
from igd.data.scratch import default_folder, mapped
from igd.tables import Change, StagedFile

Ids = NDArray[np.bytes_]
"""Image ids, 16 bytes each."""


def packed(image_ids: Iterable[str]) -> Ids:
    """Ids as a table has them, packed."""
    return np.frombuffer(bytes.fromhex("".join(image_ids)), "S16")


def among(ids: Ids, known: Ids) -> NDArray[np.bool_]:
    """Which ids are among sorted ones."""
    if not len(known):
        return np.zeros(len(ids), bool)
    at = np.searchsorted(known, ids)
    return np.asarray(known[np.minimum(at, len(known) - 1)] == ids)


class IdSets:
    """Sorted ids in one scratch file, which the system pages in and out.

    Args:
        most: ids that all sets may hold together.
    """

    def __init__(self, most: int) -> None:
        self._room = (mapped(default_folder(), (most,), "S16") if most
                      else np.zeros(0, "S16"))
        self._used = 0

    def add(self, parts: Iterable[Ids]) -> Ids:
        """A new set; an id that comes twice stays twice."""
        start = self._used
        for ids in parts:
            self._room[self._used:self._used + len(ids)] = ids
            self._used += len(ids)
        found = self._room[start:self._used]
        found.sort()
        return found


class Takeover:
    """Takes rows of a run's images out of the files of others.

    Args:
        owned: the run's ids by category, sorted.
    """

    def __init__(self, out: str, owned: Mapping[str, Ids]) -> None:
        self._out, self._owned = out, owned
        self._hits: dict[str, Ids] = {}
        self._rewritten: dict[tuple[str, bytes], list[StagedFile]] = {}

    def __call__(self, others: Sequence[StagedFile],
                 spared: Mapping[str, Ids] | None = None) -> Change:
        """What changes among files of the run's date that are not its own.

        Args:
            spared: sorted ids by category whose rows stay.
        """
        change = Change()
        for file in others:
            hits = self._hit(file)
            if spared:
                hits = hits[~among(hits, spared.get(file.category or "", packed([])))]
            if len(hits):
                change.removed.append(file)
                change.added.extend(self.without(file, hits))
        return change

    def without(self, file: StagedFile, unwanted: Ids) -> list[StagedFile]:
        """A file's other rows, in a new file of the same run unless they are all it has."""
        key = file.path, unwanted.tobytes()
        if key not in self._rewritten:
            self._rewritten[key] = self._rewrite(file, unwanted)
        return self._rewritten[key]

    def _rewrite(self, file: StagedFile, unwanted: Ids) -> list[StagedFile]:
        rows = tables.read(self._out, "scores", file.date, files=[file])
        kept = rows.filter(pa.array(~among(packed(rows["image_id"].to_pylist()), unwanted)))
        if len(kept) in (0, len(rows)):
            return [file] if len(kept) else []
        return [tables.stage(self._out, "scores", kept, date=file.date, category=file.category,
                             stem=tables.staged_stem(file.path))]

    def _hit(self, file: StagedFile) -> Ids:
        """Sorted ids of a file that are the run's own; only its column of ids is read."""
        owned = self._owned.get(file.category or "")
        if owned is None:
            return packed([])
        if file.path not in self._hits:
            rows = tables.read(self._out, "scores", file.date, columns=["image_id"], files=[file])
            ids = packed(rows["image_id"].to_pylist())
            self._hits[file.path] = np.sort(ids[among(ids, owned)])
        return self._hits[file.path]


class Addition:
    """A run's rows that are added to a date, without those that others published meanwhile.

    Args:
        files: the run's own, staged.
        owned: its ids by category, sorted.
        seen: paths of the files that were live when it was planned.
        published: ids of a file's rows that make an image of the same model known.

    Attributes:
        left_out: rows of the run that the last decision left to others.
    """

    def __init__(self, out: str, files: Sequence[StagedFile], owned: Mapping[str, Ids], *,
                 date: Date, seen: set[str], published: Callable[[StagedFile], Ids]) -> None:
        self.left_out = 0
        self._files, self._owned, self._date, self._seen = files, owned, date, seen
        self._published = published
        self._meanwhile: dict[str, Ids] = {}
        self._take_over = Takeover(out, owned)

    def __call__(self, live: Sequence[StagedFile]) -> Change:
        """What changes among the live files of every date."""
        spared = self._spared(live)
        self.left_out = sum(map(len, spared.values()))
        mine = [kept for file in self._files for kept in self._kept(file, spared)]
        others = self._take_over([file for file in live if file.date == self._date], spared)
        return replace(others, added=[*mine, *others.added], rows=sum(f.rows for f in mine))

    def _kept(self, file: StagedFile, spared: Mapping[str, Ids]) -> list[StagedFile]:
        unwanted = spared.get(file.category or "")
        return [file] if unwanted is None else self._take_over.without(file, unwanted)

    def _spared(self, live: Sequence[StagedFile]) -> dict[str, Ids]:
        """The run's ids that files since its plan hold, by category, sorted and each once."""
        found: dict[str, list[Ids]] = {}
        for file in live:
            if file.path not in self._seen and len(ids := self._of_others(file)):
                found.setdefault(file.category or "", []).append(ids)
        return {category: np.unique(np.concatenate(ids)) for category, ids in found.items()}

    def _of_others(self, file: StagedFile) -> Ids:
        """Ids of the run that a file's rows make known."""
        owned = self._owned.get(file.category or "")
        if owned is None:
            return packed([])
        if file.path not in self._meanwhile:
            ids = self._published(file)
            self._meanwhile[file.path] = ids[among(ids, owned)]
        return self._meanwhile[file.path]
