"""The bytes of members: few reads, in order, little memory, one fault costs one object."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd import storage
from igd.data import fetch as module
from igd.data.fetch import MAX_GAP_BYTES, MAX_RANGE_BYTES, fetch
from igd.data.members import Member
from igd.errors import (
    ImageError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
    StorageError,
)
from igd.records import Reason


def member(uri: str, offset: int, span: int, **more: object) -> Member:
    return Member(source_uri=uri, source_version="v", kind="tar", offset=offset, span=span,
                  size=span, **more)  # type: ignore[arg-type]


PERIOD = bytes(range(251))


class Reads:
    """Serves ranges of pretended objects, whose bytes tell their offsets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.faults: dict[str, Exception] = {}
        self._lock = threading.Lock()
        monkeypatch.setattr(storage, "read_range", self)

    def __call__(self, uri: str, offset: int, length: int, *, version: str) -> bytes:
        with self._lock:
            self.calls.append((uri, offset, length))
        if uri in self.faults:
            raise self.faults[uri]
        return content(offset, length)


def content(offset: int, length: int) -> bytes:
    start = offset % 251
    return (PERIOD * ((start + length) // 251 + 1))[start:start + length]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def test_neighbours_come_in_one_read_and_in_order(reads: Reads) -> None:
    members = [member("a", i * 700, 100) for i in range(256)]
    assert list(fetch(members)) == [content(i * 700, 100) for i in range(256)]
    assert reads.calls == [("a", 0, 255 * 700 + 100)]


@pytest.mark.parametrize(("gap", "calls"), [(0, 1), (MAX_GAP_BYTES, 1), (MAX_GAP_BYTES + 1, 2)])
def test_a_wide_gap_is_not_read(reads: Reads, gap: int, calls: int) -> None:
    assert len(list(fetch([member("a", 0, 10), member("a", 10 + gap, 10)]))) == 2
    assert len(reads.calls) == calls


def test_one_read_has_a_limit_and_a_large_member_is_read_alone(reads: Reads) -> None:
    half = MAX_RANGE_BYTES // 2
    assert len(list(fetch([member("a", 0, half), member("a", half, half)]))) == 2
    assert len(reads.calls) == 1
    assert len(list(fetch([member("a", 0, half), member("a", half, half + 1)]))) == 2
    assert len(reads.calls) == 3
    assert [len(c) for c in fetch([member("a", 0, 3 * half)])] == [3 * half]  # type: ignore[arg-type]


def test_objects_and_versions_are_never_mixed_in_a_read(reads: Reads) -> None:
    two = [member("a", 0, 5), member("b", 5, 5)]
    assert list(fetch(two)) == [content(0, 5), content(5, 5)] and len(reads.calls) == 2


def test_members_out_of_order_or_overlapping_are_still_right(reads: Reads) -> None:
    spans = [(500, 10), (0, 10), (5, 10), (5, 10), (15, 0)]
    assert list(fetch([member("a", *span) for span in spans])) == [content(*s) for s in spans]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.integers(0, 60),
                          st.booleans()), max_size=30))
def test_whatever_is_asked_comes_in_order(asked: list[tuple[str, int, int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Reads(patch)
        got = list(fetch([member(uri, offset, span, reject_reason="crc" if bad else None)
                          for uri, offset, span, bad in asked]))
    for answer, (_, offset, span, bad) in zip(got, asked, strict=True):
        assert isinstance(answer, ImageError) if bad else answer == content(offset, span)


@pytest.mark.parametrize(("error", "reason"), [
    (ObjectMissingError, Reason.VANISHED), (ObjectChangedError, Reason.CHANGED),
    (ObjectDeniedError, Reason.DENIED)])
def test_a_lost_object_rejects_its_own_members_only(
        reads: Reads, error: type[StorageError], reason: Reason) -> None:
    reads.faults["b"] = error("gone")
    got = list(fetch([member(uri, i * 10, 10) for uri in "abc" for i in range(2)]))
    assert got[:2] == got[4:] == [content(0, 10), content(10, 10)]
    assert [c.reason for c in got[2:4] if isinstance(c, ImageError)] == [reason] * 2


def test_storage_out_of_reach_says_nothing_about_an_image(reads: Reads) -> None:
    reads.faults["b"] = StorageError("down")
    with pytest.raises(StorageError, match="down"):
        list(fetch([member("a", 0, 1), member("b", 0, 1), member("c", 0, 1)]))


def test_what_was_rejected_when_listed_is_not_read(reads: Reads) -> None:
    got = list(fetch([member("a", 0, 10, reject_reason="sparse", reject_detail="why")]))
    assert reads.calls == [] and isinstance(got[0], ImageError)
    assert (got[0].reason, got[0].detail) == ("sparse", "why")


def test_no_members_are_no_reads(reads: Reads) -> None:
    assert list(fetch([])) == [] and reads.calls == []


def test_memory_does_not_grow_with_the_members(
        reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    size, count = 1 << 20, 200
    monkeypatch.setattr(module, "MAX_RANGE_BYTES", size)
    tracemalloc.start()
    try:
        assert sum(len(c) for c in fetch([member("a", i * size, size) for i in range(count)])
                   if isinstance(c, bytes)) == size * count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(reads.calls) == count and peak < 40 * size


def test_a_reader_that_stops_early_leaves_no_reads_behind(reads: Reads) -> None:
    getting = fetch([member(str(i), 0, 10) for i in range(200)])
    next(getting)
    getting.close()
    assert len(reads.calls) < 40


def test_several_objects_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=20)

    def wait(uri: str, offset: int, length: int, *, version: str) -> bytes:
        together.wait()
        return b"x"

    monkeypatch.setattr(storage, "read_range", wait)
    assert list(fetch([member(str(i), 0, 1) for i in range(8)])) == [b"x"] * 8


def test_a_file_that_became_a_folder_has_vanished(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    entry = storage.stat(str(tmp_path / "a.png"))
    assert entry is not None
    lost = Member(source_uri=entry.uri, source_version=entry.version, span=1, size=1)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").mkdir()
    (answer,) = fetch([lost])
    assert isinstance(answer, ImageError) and answer.reason in (Reason.VANISHED, Reason.CHANGED)
