"""A batch run: what was asked for, where its state lives, and whether it is published.

    <out>/runs/<run_id>/plan/<n>-<uuid>.parquet     members, a row group per shard
                       /plan/<n>.json               put-if-absent: the part of the plan that counts
                       /plan.json                   put-if-absent: the whole plan
                       /attempts/<n>-<uuid>         somebody reads a shard, or died of it
                       /shards/<n>-<uuid>.parquet   score rows
                       /done/<n>.json               put-if-absent: the shard file that counts
                       /lease.json                  written anew by whoever goes on with it
                       /collected/<uuid>            gc removed the rest; never gone on with
                       /published.json, summary.json

The run id hashes what was asked for (date, sources, models, routing, settings that affect
results), never workers or shard sizes, so that the same command finds its own run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import date as Date
from typing import Any, Literal

from igd import storage, tables
from igd.data.globs import glob_of, overlap
from igd.data.routing import Routing
from igd.data.selection import EVERYTHING, Selection
from igd.errors import ConfigError, ObjectMissingError
from igd.score.device import CPU, GPU, Device

HeatmapPolicy = Literal["all", "flagged", "none"]
COLLECTED = "collected"
HEATMAP_POLICIES: tuple[HeatmapPolicy, ...] = ("all", "flagged", "none")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Images, and how a model is chosen for each.

    Attributes:
        sources: canonical URIs of places and patterns, without repetition.
        gpu: images are scored on GPUs, whose last bits are others.
    """

    sources: tuple[str, ...]
    models: str
    routing: Routing
    selection: Selection = EVERYTHING
    gpu: bool = False

    @property
    def device(self) -> Device:
        """What scores."""
        return GPU if self.gpu else CPU


@dataclass(frozen=True, kw_only=True)
class Request(Inputs):
    """What a run is asked to do; everything here affects its results.

    Attributes:
        fpr, review_fpr: false-positive rates of the two levels.
        null_scorer: every image has score 0, which measures all but the scoring.
        new_only: add images that are published under no date, and leave all others as they are.
    """

    out: str
    date: Date
    fpr: float = 0.01
    review_fpr: float = 0.05
    heatmaps: HeatmapPolicy = "flagged"
    null_scorer: bool = False
    new_only: bool = False

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for this request."""
        parts: tuple[Any, ...] = (
            self.date.isoformat(), self.sources, self.models, self.routing.category,
            self.routing.pattern, self.fpr, self.review_fpr, self.heatmaps)
        # of runs without these, the key is older than they are
        if self.routing.column is not None:
            parts += (("column", self.routing.column),)
        if self.selection != EVERYTHING:
            parts += (("selection", self.selection.include, self.selection.exclude,
                       self.selection.limit),)
        for name in ("new_only", "null_scorer", "gpu"):
            if getattr(self, name):
                parts += (name,)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def inputs(sources: Sequence[str], *, models: str, routing: Routing,
           selection: Selection = EVERYTHING, gpu: bool = False) -> Inputs:
    """Checked `Inputs`.

    Raises:
        ConfigError: a source inside another, or models inside a source.
    """
    canonical = tuple(dict.fromkeys(storage.canonical(source) for source in sources))
    for inner in canonical:
        for outer in canonical:
            if inner != outer and overlap(inner, outer):
                raise ConfigError(f"source {inner} lies inside source {outer}; its images would "
                                  "count twice")
    _refuse_inside("--models", models, canonical)
    return Inputs(sources=canonical, models=storage.canonical(models), routing=routing,
                  selection=selection, gpu=gpu)


def request(sources: Sequence[str], *, models: str, out: str, date: Date, routing: Routing,
            selection: Selection = EVERYTHING, fpr: float = 0.01, review_fpr: float = 0.05,
            heatmaps: str = "flagged", new_only: bool = False,
            null_scorer: bool = False, gpu: bool = False) -> Request:
    """A checked `Request`.

    Raises:
        ConfigError: as `inputs`, rates out of range, an unknown policy, `out` inside a source,
            a source inside `out`.
    """
    if heatmaps not in HEATMAP_POLICIES:
        raise ConfigError(f"--heatmaps {heatmaps!r}: expected one of {', '.join(HEATMAP_POLICIES)}")
    for option, rate in (("--fpr", fpr), ("--review-fpr", review_fpr)):
        if not 0 < rate < 1:
            raise ConfigError(f"{option} {rate}: expected a rate between 0 and 1, such as 0.01")
    checked = inputs(sources, models=models, routing=routing, selection=selection, gpu=gpu)
    _refuse_inside("--out", out, checked.sources)
    _refuse_own(out, checked.sources)
    policy: HeatmapPolicy = next(p for p in HEATMAP_POLICIES if p == heatmaps)
    return Request(**vars(checked), out=storage.canonical(out), date=date, fpr=fpr,
                   review_fpr=review_fpr, heatmaps=policy, new_only=new_only,
                   null_scorer=null_scorer)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation of a request, and its places."""

    request: Request
    generation: int

    @property
    def run_id(self) -> str:
        return f"{_stem(self.request)}{self.generation}"

    def at(self, *parts: str) -> str:
        return storage.join(self.request.out, "runs", self.run_id, *parts)

    def read_json(self, name: str) -> dict[str, Any] | None:
        return read_document(self.at(name))

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        storage.write_bytes(self.at(name), to_json(document))

    def create_json(self, name: str, document: dict[str, Any]) -> bool:
        return storage.put_if_absent(self.at(name), to_json(document))

    def is_planned(self) -> bool:
        """Whether a part of its plan is frozen, or all of it (which may hold no image)."""
        return any(storage.stat(self.at(*name)) is not None
                   for name in (("plan.json",), ("plan", "000000.json")))

    def hold(self) -> bool:
        """Says that this run is alive; False where `gc` has taken it for dead and removed it.

        Of a run and a `gc` at one moment, one sees the other: this writes before it looks, and
        so does `gc` with its mark.
        """
        self.write_json("lease.json", {"at": datetime.now(UTC).isoformat()})
        return not self.is_collected()

    def is_collected(self) -> bool:
        """Whether `gc` took this run for dead."""
        return next(storage.list_objects(self.at(COLLECTED)), None) is not None

    def is_live(self, plan: dict[str, Any]) -> bool:
        """Whether the rows of this run, and no others, stand in `scores` for its categories.

        Of a run that adds to others' rows: whether nothing but its own commit has changed the
        table since it was planned, for what it left out must still be there.
        """
        out = self.request.out
        if plan.get("new_only"):
            version, files = tables.snapshot(out, "scores")
            added = any(tables.staged_run(file.path) == self.run_id for file in files)
            return bool(version == plan["known_version"] + added) and added == bool(plan["members"])
        live = {tables.staged_run(file.path) for file in tables.replaced_by(
            self.run_id, plan["categories"], tables.live_files(out, "scores", self.request.date))}
        return live == ({self.run_id} if plan["members"] else set())


def latest(wanted: Request) -> Run | None:
    """The newest generation of a request whose plan was begun and that `gc` did not remove."""
    stem = _stem(wanted)
    generations = [int(name.removeprefix(stem))
                   for name in storage.list_dirs(storage.join(wanted.out, "runs"))
                   if name.startswith(stem) and name.removeprefix(stem).isdigit()]
    for generation in sorted(generations, reverse=True):
        run = Run(request=wanted, generation=generation)
        if run.is_planned() and not run.is_collected():
            return run
    return None


def next_run(wanted: Request, after: Run | None) -> Run:
    """The generation after one (or the first); the number of one that `gc` removed stays taken.

    The tables remember which runs they have rows of, so that no number may stand for two plans.
    """
    run = Run(request=wanted, generation=after.generation + 1 if after else 1)
    while run.is_collected():
        run = Run(request=wanted, generation=run.generation + 1)
    return run


def _refuse_inside(option: str, place: str, sources: Sequence[str]) -> None:
    for source in sources:
        glob = glob_of(source)
        if storage.is_inside(place, source) or (glob is not None and glob.may_hold(place)):
            raise ConfigError(f"{option} {place} lies inside source {source}; its files would "
                              "count as images; choose a place outside")


def _refuse_own(out: str, sources: Sequence[str]) -> None:
    for source in sources:
        glob = glob_of(source)
        place = source if glob is None else glob.fixed
        if place == storage.canonical(out) or storage.is_inside(place, out):
            raise ConfigError(f"source {source} lies in --out {out}; what a run writes would count "
                              "as images; choose a place outside")


def read_document(uri: str) -> dict[str, Any] | None:
    """A JSON object of a run, or None where there is none."""
    try:
        return dict(json.loads(storage.read_bytes(uri)))
    except ObjectMissingError:
        return None


def to_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _stem(wanted: Request) -> str:
    return f"{wanted.date.isoformat()}-{wanted.key}-g"
