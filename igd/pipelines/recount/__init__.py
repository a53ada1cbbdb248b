"""A run's inputs counted again: listed again, archives read by other readers, ids recomputed.

No code of the writer's is shared but the identity of an image, the rules of routing and selection,
and the storage. What the plan says is used only to tell an object that it listed from a later one.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from igd import storage
from igd.data.globs import glob_of
from igd.data.members import Member, escape_name
from igd.data.routing import PLACEHOLDER, Routing
from igd.data.selection import Selection, selection
from igd.errors import ObjectChangedError, ObjectDeniedError, ObjectMissingError
from igd.pipelines.recount.archives import entries
from igd.pipelines.recount.ledger import Flags, Ids, Ledger, find, packed, union
from igd.pipelines.recount.ranged import UncountableError
from igd.records import UNROUTED

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".zip", ".parquet")
AT_ONCE = 4096


@dataclass(kw_only=True)
class Account:
    """What became of one source of a run.

    Attributes:
        images: found in the inputs, each with a row of its category.
        replaced: found, of categories whose rows another run has replaced since.
        lost: found in an object that the plan knows, without a row.
        first_lost: id and name of the first of them.
        later: ids of files that the plan does not know, nor a row.
        later_archives: archives that the plan does not know.
        later_uris: ids of the URIs of both.
        counted: archives read to their end, by `object_id`.
        uncounted: archives that were not, by `object_id`: URI and why.
        unread: why the whole source was not listed again.
    """

    run_id: str
    source_uri: str
    images: int = 0
    replaced: int = 0
    lost: list[Ids] = field(default_factory=list)
    first_lost: tuple[str, str] | None = None
    later: list[Ids] = field(default_factory=list)
    later_archives: int = 0
    later_uris: list[Ids] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)
    uncounted: dict[str, tuple[str, str]] = field(default_factory=dict)
    unread: str | None = None


class PlannedObjects:
    """The objects that a plan knows, a few bytes each.

    Attributes:
        archives: by `object_id`, the last ordinal of each that is planned; -1 for none.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.archives = {object_id(record["source_uri"], record["source_version"]): -1
                         for record in plan["source_records"] if record["kind"] != "files"}
        self.cut = next(reversed(self.archives), None) if plan.get("limited_to") else None
        """The archive that a limit may have ended in."""
        self._files: list[Ids] = []
        self._unopened: list[Ids] = []

    def add(self, members: pa.Table) -> None:
        """Takes the planned rows of a shard."""
        is_file = pc.equal(members["kind"], "file")
        files = members.filter(is_file)
        self._files.append(packed(files["image_id"].to_pylist()))
        unopened = files.filter(pc.is_valid(files["reject_reason"]))
        self._unopened.append(packed(unopened["image_id"].to_pylist()))
        for row in members.filter(pc.invert(is_file)).group_by(
                ["source_uri", "source_version"]).aggregate([("ordinal", "max")]).to_pylist():
            key = object_id(row["source_uri"], row["source_version"])
            self.archives[key] = max(self.archives.get(key, -1), row["ordinal_max"])

    def close(self) -> None:
        self._files, self._unopened = [union(self._files)], [union(self._unopened)]

    def has_files(self, ids: Ids) -> Flags:
        return find(self._files[0], ids)[1]

    def left_unopened(self, key: str) -> bool:
        """Whether the plan has an object as one rejected image, as of an archive that was denied.

        Packed tars were not always opened either.
        """
        return bool(find(self._unopened[0], packed([key]))[1][0])


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the inputs.

    Attributes:
        category: None where the path does not tell it.
        name: the raw name within an archive.
    """

    image_id: str
    category: str | None
    uri: str
    name: bytes
    is_sidecar: bool = False


class Recount:
    """The walk over the sources of one run."""

    def __init__(self, plan: dict[str, Any], planned: PlannedObjects, ledger: Ledger,
                 progress: Callable[[int], None]) -> None:
        self._plan, self._planned, self._ledger = plan, planned, ledger
        self._progress = progress
        self._routing = routing_of(plan["routing"])
        self._selection = selection_of(plan)
        self._replaced = {category for category in plan["counts"]
                          if not ledger.has_rows(plan["run_id"], category)}
        self._count = 0

    def account(self, source: str) -> Account:
        """Lists and counts one source again.

        Raises:
            StorageError: the storage is out of reach.
        """
        account = Account(run_id=self._plan["run_id"], source_uri=source)
        try:
            self._list(source, account)
        except ObjectDeniedError as error:
            account.unread = str(error)
        except ObjectMissingError:
            pass  # no such bucket: all that was in it is gone
        return account

    def _list(self, source: str, account: Account) -> None:
        files: list[Image] = []
        for entry in objects(source):
            if is_archive(entry) and not self._planned.left_unopened(
                    object_id(entry.uri, entry.version)):
                self._archive(entry, account)
            elif self._selection.wants(entry.key):
                files.append(self._image(entry, entry.key))
            if len(files) >= AT_ONCE:
                self._files(files, account)
                files = []
        self._files(files, account)

    def _archive(self, entry: storage.Entry, account: Account) -> None:
        key = object_id(entry.uri, entry.version)
        if key not in self._planned.archives and not self._planned.has_files(packed([key]))[0]:
            if not self._plan.get("limited_to"):
                account.later_archives += 1
                account.later_uris.append(packed([object_id(entry.uri, "")]))
            return
        images: list[Image] = []
        try:
            for image in self._inside(entry):
                images.append(image)
                if len(images) >= AT_ONCE:
                    self._members(images, account)
                    images = []
            account.counted.add(key)
        except (UncountableError, ObjectChangedError, ObjectDeniedError,
                ObjectMissingError) as error:
            account.uncounted[key] = entry.uri, str(error)
        self._members(images, account)

    def _inside(self, entry: storage.Entry) -> Iterator[Image]:
        key = object_id(entry.uri, entry.version)
        last = self._planned.archives.get(key, -1) if key == self._planned.cut else None
        for named in entries(entry):
            if last is not None and named.ordinal > last:
                return
            path = os.fsdecode(named.name)
            if self._selection.wants(path):
                yield self._image(entry, path, named.ordinal, named.name, named.is_sidecar)

    def _image(self, entry: storage.Entry, path: str, ordinal: int = 0, name: bytes = b"",
               is_sidecar: bool = False) -> Image:
        category = None
        if self._routing.column is None:
            routed = self._routing.route(path)
            category = routed if routed in self._plan["bundles"] else UNROUTED
        member = Member(source_uri=entry.uri, source_version=entry.version, ordinal=ordinal,
                        raw_name=name, span=0, size=0)
        return Image(member.image_id, category, entry.uri, name, is_sidecar)

    def _members(self, images: list[Image], account: Account) -> None:
        lost = [image for image in self._without_row(images, account) if not image.is_sidecar]
        self._lose(lost, account)

    def _files(self, images: list[Image], account: Account) -> None:
        absent = self._without_row(images, account)
        known = self._planned.has_files(packed(image.image_id for image in absent))
        self._lose([image for image, is_known in zip(absent, known, strict=True) if is_known],
                   account)
        if not self._plan.get("limited_to"):
            later = [image for image, is_known in zip(absent, known, strict=True) if not is_known]
            account.later.append(packed(image.image_id for image in later))
            account.later_uris.append(packed(object_id(image.uri, "") for image in later))

    def _without_row(self, images: list[Image], account: Account) -> list[Image]:
        """Those that have no row, although no other run has replaced their category."""
        absent = []
        for category in {image.category for image in images}:
            mine = [image for image in images if image.category == category]
            there = self._ledger.find(category, packed(image.image_id for image in mine))
            account.images += int(there.sum())
            left = [image for image, has_row in zip(mine, there, strict=True) if not has_row]
            if category in self._replaced or (category is None and self._replaced):
                account.replaced += len(left)
            else:
                absent += left
        self._count += len(images)
        self._progress(self._count)
        return absent

    def _lose(self, images: list[Image], account: Account) -> None:
        if not images:
            return
        account.lost.append(packed(image.image_id for image in images))
        first = images[0]
        account.first_lost = account.first_lost or (
            first.image_id, f"{first.uri} {escape_name(first.name)!r}" if first.name else first.uri)


def object_id(uri: str, version: str) -> str:
    """32 hexadecimal digits for an object; those of the image where it is no archive."""
    return Member(source_uri=uri, source_version=version, span=0, size=0).image_id


def objects(source: str) -> Iterator[storage.Entry]:
    """The object at a source, all below it, or all that match it."""
    glob = glob_of(source)
    if glob is not None:
        yield from glob.entries()
        return
    entry = storage.stat(source)
    if entry is None:
        yield from storage.list_objects(source)
        return
    name = posixpath.basename(place_of(source).rstrip("/"))
    yield dataclasses.replace(entry, key=name)


def is_archive(entry: storage.Entry) -> bool:
    return entry.problem != "not_regular" and entry.key.lower().endswith(ARCHIVES)


def place_of(uri: str) -> str:
    """A URI without the escapes of a local one."""
    return storage.local_path(uri) if storage.is_local(uri) else uri


def routing_of(said: str) -> Routing:
    """The routing that a plan describes."""
    if said.startswith("from ") and PLACEHOLDER in said:
        return Routing(pattern=said.removeprefix("from "))
    if said.startswith("from column "):
        return Routing(column=said.removeprefix("from column "))
    return Routing(category=said)


def selection_of(plan: dict[str, Any]) -> Selection:
    """The patterns that a plan describes; plans of earlier versions have none."""
    said = plan.get("selection") or {}
    return selection(said.get("include", ()), said.get("exclude", ()))
