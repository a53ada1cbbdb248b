"""The bytes of members: coalesced range reads, several at a time, or a file read forward."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from igd import storage
from igd.data.members import Member
from igd.data.packed import PackedMembers
from igd.data.parquet import Rows
from igd.data.zipindex import unpack
from igd.errors import (
    ImageError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
)
from igd.records import Reason

MAX_GAP_BYTES = 64 * 1024
"""Members this close together are fetched in one range."""
MAX_RANGE_BYTES = 16 * 1024 * 1024
THREADS = 8
HELD_BYTES = 256 * 1024 * 1024
"""What is read forward and asked for in another order is held up to this."""

STORAGE_REASONS = {ObjectMissingError: Reason.VANISHED, ObjectChangedError: Reason.CHANGED,
                   ObjectDeniedError: Reason.DENIED}

Forward = Rows | PackedMembers
FORWARD = ("parquet", "tar.gz", "tar.zst")
"""Kinds whose members have no range of their own."""

_idle: deque[Forward] = deque(maxlen=1)
"""The file last read forward, where reading stopped: a process that reads shard after shard of one
large row group, or of one packed tar, goes through it once."""


def fetch(members: Sequence[Member]) -> Iterator[bytes | ImageError]:
    """The content of each member, in order, or why there is none.

    Members that were rejected when listed yield that reason without a read. An object that
    vanished, changed or is denied rejects its members; any other storage error is raised, for
    it says nothing about an image.
    """
    for forward, group in groupby(members, key=lambda m: m.kind in FORWARD):
        run = list(group)
        yield from _fetch_forward(run) if forward else _fetch_ranges(run)


def _fetch_ranges(members: Sequence[Member]) -> Iterator[bytes | ImageError]:
    groups = list(_ranges(members))
    with ThreadPoolExecutor(THREADS) as pool:
        window = THREADS * 2
        pending = deque(pool.submit(_read, group) for group in groups[:window])
        for i, group in enumerate(groups):
            answer = pending.popleft().result()
            if i + window < len(groups):
                pending.append(pool.submit(_read, groups[i + window]))
            for member in group:
                yield _content(member, group[0].offset, answer)


def _ranges(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Runs of members that one range read serves."""
    for _, run in groupby(members, key=lambda m: (m.source_uri, m.source_version)):
        group: list[Member] = []
        for member in run:
            if group and not _joins(group, member):
                yield group
                group = []
            group.append(member)
        yield group


def _joins(group: list[Member], member: Member) -> bool:
    first, last = group[0], group[-1]
    gap = member.offset - (last.offset + last.span)
    return (member.reject_reason is None and last.reject_reason is None
            and 0 <= gap <= MAX_GAP_BYTES
            and member.offset + member.span - first.offset <= MAX_RANGE_BYTES)


def _read(group: list[Member]) -> bytes | ImageError:
    first, last = group[0], group[-1]
    if first.reject_reason is not None:
        return ImageError(first.reject_reason, first.reject_detail or "")
    try:
        return storage.read_range(first.source_uri, first.offset,
                                  last.offset + last.span - first.offset,
                                  version=first.source_version)
    except tuple(STORAGE_REASONS) as error:
        return ImageError(STORAGE_REASONS[type(error)], str(error))


def _content(member: Member, start: int, answer: bytes | ImageError) -> bytes | ImageError:
    if isinstance(answer, ImageError):
        return answer
    at = member.offset - start
    data = answer[at:at + member.span]
    try:
        return unpack(member, data) if member.kind == "zip" else data
    except ImageError as error:
        return error


def _fetch_forward(members: Sequence[Member]) -> Iterator[bytes | ImageError]:
    for at, run in groupby(members, key=lambda m: (m.source_uri, m.source_version, m.kind)):
        reader = _reader(*at)
        for block in _blocks(list(run)):
            order = sorted(range(len(block)), key=lambda i: block[i].ordinal)
            if order == list(range(len(block))):
                yield from (_forward(reader, member) for member in block)
            else:
                found = {i: _forward(reader, block[i]) for i in order}
                yield from (found.pop(i) for i in range(len(block)))
        reader.pause()
        _idle.append(reader)


def _reader(uri: str, version: str, kind: str) -> Forward:
    with contextlib.suppress(IndexError):
        reader = _idle.pop()
        if (reader.uri, reader.version) == (uri, version):
            return reader
    return Rows(uri, version) if kind == "parquet" else PackedMembers(uri, version, kind)


def _blocks(members: Sequence[Member]) -> Iterator[list[Member]]:
    block: list[Member] = []
    held = 0
    for member in members:
        if block and held + member.size > HELD_BYTES:
            yield block
            block, held = [], 0
        block.append(member)
        held += member.size
    if block:
        yield block


def _forward(reader: Forward, member: Member) -> bytes | ImageError:
    if member.reject_reason is not None:
        return ImageError(member.reject_reason, member.reject_detail or "")
    try:
        return reader.read(member)
    except ImageError as error:
        return error
    except tuple(STORAGE_REASONS) as error:
        return ImageError(STORAGE_REASONS[type(error)], str(error))
