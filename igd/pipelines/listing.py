"""One pass over the sources of a request: every picked member, routed to a category."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from igd import registry, storage
from igd.config import ImageConfig
from igd.data.globs import glob_of
from igd.data.members import Member
from igd.data.routing import Routing
from igd.data.selection import Picker
from igd.data.sources import SourceRecord, check_source, scan
from igd.errors import ConfigError, DataError, ModelError
from igd.pipelines.run import Inputs
from igd.records import UNROUTED, Reason
from igd.score.scorer import score_fingerprint

SHARD_PIXEL_BYTES = 96 * 1024 * 1024
"""Decoded input of a shard; one block of Ray Data stays below its 128 MiB target."""
PROGRESS_EVERY = 100


@dataclass(frozen=True, slots=True)
class Routed:
    """A member and its category; `limit` bounds the members of its category's shards."""

    member: Member
    category: str
    limit: int


class Listing:
    """A pass over the sources; what it found beside the members is complete when it is through.

    Args:
        unknown_category: `reject`, or `error`: an image of a category without a model ends it.
        bundles: models that are frozen already, by category; None for a category without one.

    Attributes:
        models: those of the categories that turned up.
        inputs: of the objects listed.
        records: how each source and archive ended.

    Raises:
        ModelError: the category asked for has no usable model.
    """

    def __init__(self, wanted: Inputs, *, unknown_category: str = "reject",
                 bundles: Mapping[str, dict[str, Any] | None] | None = None) -> None:
        self.wanted = wanted
        self.models = Models(wanted, strict=unknown_category == "error", frozen=bundles or {})
        self.inputs = InputsHash()
        self.records: list[SourceRecord] = []
        self.picker = Picker(wanted.selection)
        self.unmatched: list[str] = []
        """Patterns of --exclude that matched nothing."""

    def members(self, progress: Callable[[int], None] = lambda members: None) -> Iterator[Routed]:
        """The members, once, in source order.

        Raises:
            ConfigError: a pattern of --include that matches nothing, or no model of any category.
            DataError: a source is not there, or two patterns have an object in common.
            ModelError: that of an image's category is damaged, or missing with `error`.
        """
        for source in self.wanted.sources:
            check_source(source)
        count = 0
        for source in self.wanted.sources:
            if self.picker.full:
                break
            for path, member in scan(source, self.records.append, self._noted(source),
                                     self.picker, column=self.wanted.routing.column):
                yield self._routed(member, path, self.wanted.routing)
                count += 1
                if count % PROGRESS_EVERY == 0:
                    progress(count)
        self.unmatched = self.picker.idle_excludes()
        progress(count)

    def _noted(self, source: str) -> Callable[[storage.Entry], None]:
        """Takes the objects of one source; refuses one that another source has too."""
        globs = {other: glob_of(other) for other in self.wanted.sources}

        def note(entry: storage.Entry) -> None:
            for other, glob in globs.items():
                if other != source and (glob or globs[source]) and (
                        glob.holds(entry.uri) if glob else _is_of(entry.uri, other)):
                    raise DataError(f"{entry.uri} is of source {source} and of source {other} and "
                                    "would count twice; give sources that have nothing in common")
            self.inputs.add(entry)
        return note

    def _routed(self, member: Member, path: str, routing: Routing) -> Routed:
        category = routing.route(path)
        if category is None:
            reason, detail = Reason.UNROUTED, f"no category {routing.describe()}"
        elif not self.models.known(category, path):
            reason, detail = Reason.UNKNOWN_CATEGORY, f"no model for category {category!r}"
        else:
            return Routed(member, category, self.models.shard_limit(category))
        rejected = dataclasses.replace(member, reject_reason=reason, reject_detail=detail)
        return Routed(rejected, UNROUTED, self.models.shard_limit(UNROUTED))


def _is_of(uri: str, place: str) -> bool:
    return uri == place or storage.is_inside(uri, place)


class InputsHash:
    """A hash of what was listed: URIs and versions, in any order."""

    def __init__(self) -> None:
        self._sum = self.count = 0

    def add(self, entry: storage.Entry) -> None:
        digest = hashlib.sha256(f"{entry.uri}\0{entry.version}".encode()).digest()
        self._sum = (self._sum + int.from_bytes(digest[:16], "little")) % (1 << 128)
        self.count += 1

    @property
    def value(self) -> str:
        return f"{self._sum:032x}"


class Models:
    """The model versions of the categories that turned up."""

    def __init__(self, wanted: Inputs, *, strict: bool,
                 frozen: Mapping[str, dict[str, Any] | None]) -> None:
        self._wanted = wanted
        self._strict = strict
        self._bundles = dict(frozen)
        self._unknown: Counter[str] = Counter()
        only = wanted.routing.category
        if only is not None and only not in self._bundles:
            self._bundles[only] = self._load(only)

    def adopt(self, frozen: Mapping[str, dict[str, Any] | None]) -> None:
        """Takes the models that another process has frozen first."""
        self._bundles.update(frozen)

    def known(self, category: str, path: str) -> bool:
        """Whether there is a model for an image of a category; counts those without.

        Raises:
            ConfigError: there is no model at all.
            ModelError: the model is damaged, or there is none and every image must have one.
        """
        if category not in self._bundles:
            try:
                self._bundles[category] = self._load(category)
            except ModelError:
                names = registry.list_categories(self._wanted.models)
                if category in names:
                    raise  # damaged, which no image should pay for
                if not names:  # mistyped, more likely than a dump of categories all unknown
                    raise ConfigError(f"no models in {self._wanted.models}; run igd-ray train-all "
                                      "first") from None
                self._bundles[category] = None
        if self._bundles[category] is not None:
            return True
        if self._strict:
            raise ModelError(f"image {path!r}: there is no model of category {category!r} in "
                             f"{self._wanted.models}; train it, leave such images out (--exclude) "
                             "or have them rejected (--unknown-category reject)")
        self._unknown[category] += 1
        return False

    def unknown(self) -> dict[str, int]:
        return dict(sorted(self._unknown.items()))

    def bundle(self, category: str) -> dict[str, Any] | None:
        """What a plan freezes of a category's model; None where there is none."""
        return self._bundles.get(category)

    def shard_limit(self, category: str) -> int:
        bundle = self._bundles.get(category)
        size = bundle["image"]["size"] if bundle else ImageConfig().size
        return max(1, SHARD_PIXEL_BYTES // (3 * size * size))

    def of(self, categories: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What a plan freezes of the models of some categories; those without one are left out."""
        found = ((category, self._bundles.get(category)) for category in sorted(categories))
        return {category: bundle for category, bundle in found if bundle is not None}

    def all(self) -> dict[str, dict[str, Any]]:
        return self.of(self._bundles)

    def _load(self, category: str) -> dict[str, Any]:
        bundle = registry.load_bundle(self._wanted.models, category)
        count = bundle.calibration.num_rows
        return {"version": bundle.version, "sha256": bundle.sha256, "preset": bundle.preset,
                "image": dataclasses.asdict(bundle.config.image), "calibration_images": count,
                "score_fingerprint": score_fingerprint(bundle.config, self._wanted.device),
                "smallest_alpha": 1 / (count + 1)}
