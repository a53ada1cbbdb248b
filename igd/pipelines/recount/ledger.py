"""The published rows of a date, a few bytes each, and what has accounted for them so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.bytes_]
Flags = NDArray[np.bool_]


def packed(ids: Iterable[str]) -> Ids:
    """Ids of 32 hexadecimal digits as 16 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(ids)), "S16")


def unpacked(ids: Ids, at: int) -> str:
    """One of them as text again."""
    return ids[at:at + 1].tobytes().hex()


def union(parts: Iterable[Ids]) -> Ids:
    """Sorted, each once."""
    return np.unique(np.concatenate([packed([]), *parts]))


def find(ids: Ids, wanted: Ids) -> tuple[NDArray[np.intp], Flags]:
    """Where each of some ids stands among sorted ones, and whether it is there at all."""
    if not len(ids):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return at, ids[at] == wanted


@dataclass(kw_only=True)
class CategoryRows:
    """The rows of one category, by id.

    Attributes:
        ids: sorted, each once.
        runs: which run wrote each, as a number of the ledger.
        planned: whether the plan of that run holds it.
        found: whether it was found in the inputs.
        twice: rows beyond the first of an id.
    """

    ids: Ids
    runs: NDArray[np.int16]
    planned: Flags
    found: Flags
    twice: Ids


class Ledger:
    """Rows by category; `add` them all, then `close`.

    Attributes:
        runs: those that have rows, in the order they turned up.
    """

    def __init__(self) -> None:
        self.runs: list[str] = []
        self._parts: dict[str, list[tuple[Ids, NDArray[np.int16]]]] = {}
        self._rows: dict[str, CategoryRows] = {}
        self._live: set[tuple[str, str]] = set()

    def add(self, category: str, ids: Iterable[str], runs: Sequence[str]) -> None:
        for run in dict.fromkeys(runs):
            self._live.add((run, category))
            if run not in self.runs:
                self.runs.append(run)
        numbers = {run: number for number, run in enumerate(self.runs)}
        self._parts.setdefault(category, []).append(
            (packed(ids), np.array([numbers[run] for run in runs], np.int16)))

    def close(self) -> None:
        for category, parts in self._parts.items():
            ids, runs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            order = np.argsort(ids, kind="stable")
            ids, runs = ids[order], runs[order]
            again = np.concatenate([[False], ids[1:] == ids[:-1]])
            flags = np.zeros(len(ids) - int(again.sum()), bool)
            self._rows[category] = CategoryRows(
                ids=ids[~again], runs=runs[~again], planned=flags, found=flags.copy(),
                twice=ids[again])
        self._parts.clear()

    @property
    def categories(self) -> dict[str, CategoryRows]:
        return self._rows

    def has_rows(self, run: str, category: str) -> bool:
        return (run, category) in self._live

    def plan(self, run: str, category: str, ids: Ids) -> Flags:
        """Notes what a run planned; says which of it have a row, of whichever run."""
        rows = self._rows.get(category)
        if rows is None:
            return np.zeros(len(ids), bool)
        at, there = find(rows.ids, ids)
        mine = at[there]
        rows.planned[mine[rows.runs[mine] == self._number(run)]] = True
        return there

    def find(self, category: str | None, ids: Ids) -> Flags:
        """Notes what is in the inputs; says which of it have a row (None: in any category)."""
        there = np.zeros(len(ids), bool)
        for name, rows in self._rows.items():
            if category in (None, name):
                at, here = find(rows.ids, ids)
                rows.found[at[here]] = True
                there |= here
        return there

    def never_planned(self, run: str) -> Ids:
        """Rows of a run that its plan does not hold."""
        return union(rows.ids[(rows.runs == self._number(run)) & ~rows.planned]
                     for rows in self._rows.values())

    def _number(self, run: str) -> int:
        return self.runs.index(run) if run in self.runs else -1
