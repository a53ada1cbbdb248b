"""A dump as a stream of members: directories and prefixes, tar, zip and Parquet, files.

Every file below a directory is a member, image or not, so that nothing goes uncounted; a file
named *.tar, *.tar.gz, *.tar.zst, *.zip or *.parquet there is opened as the archive its content
says it is; the members of a Parquet file are its rows. Archives within archives are rejected
unread. What stands beside an image in a sample of a WebDataset is no member. Nothing is ever
extracted to disk.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from igd import storage
from igd.data.globs import Glob, glob_of
from igd.data.members import MAX_MEMBER_BYTES, ArchiveEnd, Member
from igd.data.packed import packing_of, walk_packed
from igd.data.parquet import column_cells, looks_like_parquet, walk_parquet
from igd.data.selection import Picker
from igd.data.tarindex import BLOCK, looks_like_tar, nothing, walk_bodies
from igd.data.webdataset import describe, is_routing, samples
from igd.data.zipindex import looks_like_zip, walk_zip
from igd.errors import DataError, ObjectChangedError, ObjectDeniedError, ObjectMissingError
from igd.records import Reason, SourceStatus

KINDS = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar.zst": "tar.zst",
         ".tar.zstd": "tar.zst", ".zip": "zip", ".parquet": "parquet"}
ARCHIVE_SUFFIXES = tuple(KINDS)
UNREAD_SUFFIXES = (".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Packed tars that are not opened."""
AT_LIMIT = "listed no further than --limit"
NESTED_SUFFIXES = tuple(suffix.encode() for suffix in ARCHIVE_SUFFIXES + UNREAD_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """How the listing of one source ended; a row of the table `sources`."""

    source_uri: str
    source_version: str
    kind: str
    members: int
    bytes: int
    status: SourceStatus
    detail: str | None = None


def list_inputs(uri: str) -> Iterator[storage.Entry]:
    """The objects of one source, unopened: the object itself, all below the directory, or all
    that match the pattern (`igd.data.globs`), with keys relative to what is fixed of it.

    Raises:
        DataError: there is nothing at `uri`.
    """
    entry = storage.stat(uri)
    if entry is not None:
        where = storage.local_path(uri) if storage.is_local(uri) else uri
        yield dataclasses.replace(entry, key=posixpath.basename(where.rstrip("/")))
    elif storage.exists_dir(uri):
        yield from storage.list_objects(uri)
    elif (glob := glob_of(uri)) is not None:
        yield from _at_least_one(glob, uri)
    else:
        raise DataError(f"source {uri!r} not found; expected a directory, a prefix, a tar (also "
                        ".gz, .zst), a zip, a Parquet file or an image")


def _at_least_one(glob: Glob, uri: str) -> Iterator[storage.Entry]:
    matched = glob.entries()
    first = next(matched, None)
    if first is None:
        where = storage.local_path(uri) if storage.is_local(uri) else uri
        raise DataError(f"source {where!r} matches nothing below {glob.fixed}; expected *, ? and "
                        "[...] within a path segment, ** for any number of segments")
    yield first
    yield from matched


def check_source(uri: str) -> None:
    """Refuses a source that is not there, or that cannot be read as a whole.

    Raises:
        DataError: nothing is at `uri`, or it is a tar packed by bzip2 or xz.
    """
    if uri.lower().endswith(UNREAD_SUFFIXES):
        raise DataError(f"source {uri} is a tar packed by bzip2 or xz, which is not read; expected "
                        "a tar, tar.gz, tar.zst or zip; unpack it (bunzip2, unxz) to a plain tar")
    next(list_inputs(uri), None)


def select_inputs(uri: str, wants: Callable[[str], bool]) -> Iterator[storage.Entry]:
    """The objects of a source that a selection can take from: archives, and files it wants."""
    return (entry for entry in list_inputs(uri) if is_archive(entry) or wants(entry.key))


def scan(uri: str, done: Callable[[SourceRecord], None],
         seen: Callable[[storage.Entry], None] = lambda entry: None,
         picker: Picker | None = None, *, column: str | None = None
         ) -> Iterator[tuple[str, Member]]:
    """Every member of a source (that is picked) with the path it is routed by.

    Args:
        uri: a directory, a prefix, an archive, an image, or a pattern of such.
        done: told how each archive, and the source itself, ended; its members are the picked ones.
        seen: told of every object of `select_inputs`, as far as the listing goes.
        column: rows of Parquet files are routed by this column, images of a tar by this field of
            the `.json` in their sample, and all else by ""; picked are they by path all the same.
    """
    picker = picker or Picker()
    members = size = 0
    unlisted: list[str] = []
    for entry in select_inputs(uri, picker.take):
        seen(entry)
        if entry.problem == "denied" and not entry.version:
            unlisted.append(entry.key)
        if is_archive(entry):
            yield from _scan_archive(entry, done, picker, column)
        else:
            members, size = members + 1, size + entry.size
            yield entry.key if column is None else "", file_member(entry)
        if picker.full:
            break
    if members or storage.stat(uri) is None:
        done(SourceRecord(source_uri=storage.canonical(uri), source_version="", kind="files",
                          members=members, bytes=size, **_how_listed(unlisted, picker)))


def _how_listed(unlisted: Sequence[str], picker: Picker) -> dict[str, Any]:
    """Status and detail of a source; what a folder that cannot be read holds is not known."""
    if unlisted:
        return {"status": SourceStatus.DENIED, "detail": f"of {len(unlisted)} names no more may be "
                f"known (first: {unlisted[0]}); images in such a folder are missing"}
    return {"status": SourceStatus.COMPLETE, "detail": AT_LIMIT if picker.full else None}


def is_archive(entry: storage.Entry) -> bool:
    """Whether an object is opened as an archive, by its name."""
    return entry.key.lower().endswith(ARCHIVE_SUFFIXES) and entry.problem is None


def _scan_archive(entry: storage.Entry, done: Callable[[SourceRecord], None],
                  picker: Picker, column: str | None) -> Iterator[tuple[str, Member]]:
    end = ArchiveEnd()
    members = 0
    kind = "unknown"
    try:
        first = storage.read_range(entry.uri, 0, min(BLOCK, entry.size), version=entry.version)
        kind = _kind(entry, first)
        for member, cell in _walk(kind, entry, end, column):
            path = os.fsdecode(member.raw_name)
            if not picker.take(path):
                continue
            members += 1
            yield path if column is None else cell, member
            if picker.full:
                end.detail = AT_LIMIT
                break
    except (ObjectMissingError, ObjectChangedError) as error:
        end.status, end.detail = SourceStatus.VANISHED, str(error)
    except ObjectDeniedError as error:
        end.status, end.detail = SourceStatus.DENIED, str(error)
    done(SourceRecord(source_uri=entry.uri, source_version=entry.version, kind=kind,
                      members=members, bytes=entry.size, status=end.status, detail="; ".join(
                          filter(None, (end.detail, describe(end.sidecars)))) or None))


def _walk(kind: str, entry: storage.Entry, end: ArchiveEnd, column: str | None
          ) -> Iterator[tuple[Member, str]]:
    """Members of an archive, each with its cell of a column or what its sample states."""
    if kind in TAR_KINDS:
        return _walk_samples(kind, entry, end, column)
    cells = column_cells(entry, column) if column and kind == "parquet" else iter(())
    return ((_unless_nested(member), os.fsdecode(next(cells, b"")))
            for member in WALKERS[kind](entry, end))


def _walk_samples(kind: str, entry: storage.Entry, end: ArchiveEnd, column: str | None
                  ) -> Iterator[tuple[Member, str]]:
    """Members of a tar of some kind, without sidecars, each with the category its sample states."""
    wants = nothing if column is None else is_routing
    walked = (walk_bodies(entry, end, wants) if kind == "tar"
              else walk_packed(kind, entry, end, wants))
    return samples(((_unless_nested(member), body) for member, body in walked), end, column)


def _kind(entry: storage.Entry, first: bytes) -> str:
    """What its content says it is; where that says nothing, what its name says."""
    if not first:
        return "empty"
    if looks_like_zip(first):
        return "zip"
    if looks_like_tar(first):
        return "tar"
    if looks_like_parquet(first):
        return "parquet"
    return packing_of(first) or KINDS[_suffix(entry.key)]


def _suffix(key: str) -> str:
    """That of `ARCHIVE_SUFFIXES` which a key of an archive ends with."""
    return next(suffix for suffix in KINDS if key.lower().endswith(suffix))


def archive_stem(key: str) -> str:
    """The key of an archive without the ending that says it is one."""
    return key[:-len(_suffix(key))]


def _walk_empty(entry: storage.Entry, end: ArchiveEnd) -> Iterator[Member]:
    end.detail = "an archive of 0 bytes"
    return iter(())


TAR_KINDS = ("tar", "tar.gz", "tar.zst")
WALKERS: dict[str, Callable[[storage.Entry, ArchiveEnd], Iterator[Member]]] = {
    "zip": walk_zip, "parquet": walk_parquet, "empty": _walk_empty}


def _unless_nested(member: Member) -> Member:
    if member.reject_reason is not None or not member.raw_name.lower().endswith(NESTED_SUFFIXES):
        return member
    return dataclasses.replace(member, span=0, reject_reason=Reason.NESTED,
                               reject_detail="an archive within an archive is not opened")


NO_FILE = {"denied": "cannot be opened",
           "not_regular": "a pipe, a device, or a link to a folder or to nothing"}


def file_member(entry: storage.Entry) -> Member:
    """An object that is no archive, as a member."""
    reason: str | None = None
    detail: str | None = None
    if entry.problem is not None:
        reason, detail = Reason(entry.problem), NO_FILE[entry.problem]
    elif entry.key.lower().endswith(UNREAD_SUFFIXES):
        reason, detail = Reason.FORMAT_NOT_ALLOWED, "a tar packed by bzip2 or xz is not read"
    elif entry.size > MAX_MEMBER_BYTES:
        reason, detail = Reason.TOO_LARGE, f"{entry.size} bytes, at most {MAX_MEMBER_BYTES}"
    return Member(source_uri=entry.uri, source_version=entry.version, span=entry.size,
                  size=entry.size, reject_reason=reason, reject_detail=detail)
