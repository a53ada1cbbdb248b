"""The bytes of members: coalesced range reads, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from igd import storage
from igd.data.members import Member
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

STORAGE_REASONS = {ObjectMissingError: Reason.VANISHED, ObjectChangedError: Reason.CHANGED,
                   ObjectDeniedError: Reason.DENIED}


def fetch(members: Sequence[Member]) -> Iterator[bytes | ImageError]:
    """The content of each member, in order, or why there is none.

    Members that were rejected when listed yield that reason without a read. An object that
    vanished, changed or is denied rejects its members; any other storage error is raised, for
    it says nothing about an image.
    """
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
