"""Packed tars: walked as plain ones, read forward once, and bounded whatever they unpack to."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random
import resource
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import END, GOOD, base_256, header, padded, pax, tar

from igd import storage
from igd.data import fetch as fetching
from igd.data import stream
from igd.data.fetch import fetch
from igd.data.members import ArchiveEnd, Member
from igd.data.packed import Unpacked, packing_of, walk_packed
from igd.data.sources import SourceRecord, scan
from igd.data.tarindex import nothing, walk_tar
from igd.errors import ImageError, ObjectChangedError, StorageError
from igd.records import Reason, SourceStatus

ZSTD = pa.Codec("zstd")


def zstd(data: bytes) -> bytes:
    packed_data: bytes = ZSTD.compress(data, asbytes=True)
    return packed_data


PACK: dict[str, Callable[[bytes], bytes]] = {"tar.gz": gzip.compress, "tar.zst": zstd}


def entry_of(path: Path) -> storage.Entry:
    entry = storage.stat(str(path))
    assert entry is not None
    return entry


def walk(kind: str, data: bytes, folder: Path | str) -> tuple[list[Member], ArchiveEnd]:
    path = Path(folder, "dump")
    path.write_bytes(data)
    end = ArchiveEnd()
    return list(walking(kind, path, end)), end


def walking(kind: str, path: Path, end: ArchiveEnd, **more: Any) -> Iterator[Member]:
    entry = entry_of(path)
    if kind == "tar":
        return walk_tar(entry, end, **more)
    return (member for member, _ in walk_packed(kind, entry, end, nothing, **more))


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(params=["tar.gz", "tar.zst"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each range that is read."""
    lengths: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        lengths.append(length)
        return read_range(uri, offset, length, version=version)

    monkeypatch.setattr(storage, "read_range", counted)
    return lengths


# -- as a plain tar

HOSTILE = {
    "garbage after the end": GOOD + END + b"garbage",
    "no end marker": GOOD * 3,
    "cut in a member": GOOD + header(b"cut.png") + b"hell",
    "cut in a header": GOOD + header()[:200],
    "2^60 bytes": GOOD + header(b"liar.png", size=base_256(1 << 60)) + b"x" * 1500,
    "2^86 bytes": GOOD + header(b"liar.png", size=base_256(1 << 86)) + b"x" * 1500,
    "pax of 2^63 bytes": GOOD + pax(b"size=%d" % (1 << 63)) + header(b"liar.png") + b"x" * 1500,
    "negative size": GOOD + header(size=base_256(-512)) + GOOD + END,
    "bad checksum": GOOD * 2 + GOOD[:100] + b"\x7f" + GOOD[101:] + END,
    "noise": bytes(range(256)) * 2,
    "pax without equals": GOOD + header(kind=b"x", size=b"00000000006\0") + padded(b"6 abc\n"),
    "links": GOOD + header(b"link", kind=b"2", link=b"/etc/passwd", size=b"00000001000\0")
    + GOOD + END,
    "pax sparse": pax(b"GNU.sparse.major=1") + header(b"hole") + padded(b"hello") + GOOD + END,
    "GNU sparse": header(b"hole", kind=b"S", magic=b"ustar  \0", sparse_more=b"\1") + bytes(1024)
    + GOOD + END,
    "out of the archive": tar(("../../canary", b"x"), ("/etc/canary", b"y"), ("a\nb", b"z")),
    "empty": bytes(10_240),
    "long names": tar(("n" * 60_000, b"x"), (os.fsdecode(b"\xff.png"), b"y")),
    "long names of GNU": tar(("n" * 60_000, b"x"), ("n", b"y"), format=tarfile.GNU_FORMAT),
    "twins": tar(("same", b"1"), ("same", b"2"), ("SAME", b"3")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_packed_tar_ends_as_the_plain_one(tmp_path: Path, kind: str, case: str) -> None:
    plain, plain_end = walk("tar", HOSTILE[case], tmp_path)
    contents = [c if isinstance(c, bytes) else c.reason for c in fetch(plain)]
    found, end = walk(kind, PACK[kind](HOSTILE[case]), tmp_path)
    assert end == plain_end
    assert [dataclasses.replace(m, kind="tar", source_version="") for m in found] == [
        dataclasses.replace(m, source_version="") for m in plain]
    assert [c if isinstance(c, bytes) else c.reason for c in fetch(found)] == contents


BODY = st.binary(max_size=1100) | st.integers(0, 200_000).map(noise)


@settings(max_examples=25, deadline=None)
@given(members=st.lists(st.tuples(st.sampled_from(["a", "b" * 120, "ä/b.png"]), BODY), max_size=6),
       kind=st.sampled_from(sorted(PACK)), order=st.randoms(use_true_random=False))
def test_what_was_packed_is_unpacked_in_whatever_order(
        members: list[tuple[str, bytes]], kind: str, order: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(kind, PACK[kind](tar(*members)), folder)
        assert (end.status, end.detail) == (SourceStatus.COMPLETE, None)
        assert [m.raw_name for m in found] == [name.encode() for name, _ in members]
        asked = [(m, content) for m, (_, content) in zip(found, members, strict=True)]
        order.shuffle(asked)
        assert list(fetch([m for m, _ in asked])) == [content for _, content in asked]


def test_streams_one_behind_the_other_are_one_tar(tmp_path: Path, kind: str) -> None:
    whole = tar(("a", noise(100_000)), ("b", noise(5_000, 1)), ("c", b""))
    parts = [whole[at:at + 7_000] for at in range(0, len(whole), 7_000)]
    found, end = walk(kind, b"".join(map(PACK[kind], parts)), tmp_path)
    assert list(fetch(found)) == [noise(100_000), noise(5_000, 1), b""]
    assert (end.status, end.detail) == (SourceStatus.COMPLETE, None)


def test_content_says_how_a_tar_is_packed(tmp_path: Path) -> None:
    one = tar(("a.png", b"1"))
    for name, data in (("zst.tgz", zstd(one)), ("gz.tar.zst", gzip.compress(one)),
                       ("gz.tar", gzip.compress(one)), ("plain.tar.gz", one),
                       ("noise.tar.zstd", noise(900)), ("image.tar.gz", gzip.compress(noise(900)))):
        (tmp_path / name).write_bytes(data)
    records: list[SourceRecord] = []
    assert len(list(scan(str(tmp_path), records.append))) == 4
    assert {r.source_uri.rsplit("/", 1)[1]: (r.kind, r.status) for r in records} == {
        "zst.tgz": ("tar.zst", "complete"), "gz.tar.zst": ("tar.gz", "complete"),
        "gz.tar": ("tar.gz", "complete"), "plain.tar.gz": ("tar", "complete"),
        "noise.tar.zstd": ("tar.zst", "damaged"), "image.tar.gz": ("tar.gz", "damaged"),
        tmp_path.name: ("files", "complete")}
    assert packing_of(b"PK\3\4") is None


# -- cut and corrupt


def test_a_cut_stream_is_truncated_and_keeps_what_came_before(tmp_path: Path, kind: str) -> None:
    contents = [noise(90_000, i) for i in range(12)]
    data = PACK[kind](tar(*((str(i), content) for i, content in enumerate(contents))))
    for cut in (len(data) - 1, len(data) - 9, len(data) // 2, 300_000, 40):
        found, end = walk(kind, data[:cut], tmp_path)
        assert end.status == SourceStatus.TRUNCATED and "cut at byte" in (end.detail or ""), cut
        good = [c for c in fetch(found) if isinstance(c, bytes)]
        assert good == contents[:len(good)]
        assert len(good) >= (cut - 200_000) // 90_100
        assert [m.reject_reason for m in found[len(good):]] in ([], [Reason.TRUNCATED])


def test_a_cut_gzip_loses_only_what_it_cut(tmp_path: Path) -> None:
    whole = tar(*((str(i), noise(600, i)) for i in range(4)))
    data = gzip.compress(whole)
    for cut in range(1, len(data), 97):
        found, end = walk("tar.gz", data[:cut], tmp_path)
        unpacked = len(zlib.decompressobj(wbits=31).decompress(data[:cut]))
        good = [m for m in found if m.reject_reason is None]
        assert len(good) >= min(4, (unpacked - 600) // 1536), cut
        assert end.status == SourceStatus.TRUNCATED


def test_all_that_is_before_a_cut_comes_out(tmp_path: Path) -> None:
    data = gzip.compress(bytes(1 << 20) + noise(2_000) + bytes(1 << 20))
    for cut in range(20, len(data), 61):
        (tmp_path / "a").write_bytes(data[:cut])
        entry = entry_of(tmp_path / "a")
        unpacked = Unpacked("tar.gz", entry.uri, entry.size, entry.version)
        engine = zlib.decompressobj(wbits=31)
        assert unpacked.end() == len(engine.decompress(data[:cut]) + engine.flush()), cut


def test_a_wrong_checksum_is_told_and_costs_no_member(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar(("a", noise(90_000)), ("b", b"small"))))
    data[-8] ^= 1
    found, end = walk("tar.gz", bytes(data), tmp_path)
    assert list(fetch(found)) == [noise(90_000), b"small"]
    assert end.status == SourceStatus.DAMAGED and end.detail and "data check" in end.detail


def test_what_follows_a_gzip_stream_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(tar(("a", b"1")))
    for tail, detail in ((bytes(10_240), None), (b"\x1f", "after the gzip"),
                         (b"garbage", "after the gzip")):
        found, end = walk("tar.gz", whole + tail, tmp_path)
        assert list(fetch(found)) == [b"1"] and end.status == SourceStatus.COMPLETE
        assert (detail or "") in (end.detail or "") and bool(detail) == bool(end.detail)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(PACK)))
def test_no_flipped_bytes_do_more_than_reject(data: st.DataObject, kind: str) -> None:
    contents = [noise(3_000), b"text" * 2_000, b"", noise(70_000, 1)]
    whole = bytearray(PACK[kind](tar(*((str(i), c) for i, c in enumerate(contents)))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(kind, bytes(whole), folder)
        answers = list(fetch(found))
    assert isinstance(end.status, SourceStatus) and len(answers) == len(found)
    if kind == "tar.gz" and end.status == SourceStatus.COMPLETE:
        assert answers == contents


# -- bombs


def bomb(kind: str, mebibytes: int) -> bytes:
    """A member of so many zeros, and a good one."""
    head, tail = header(b"bomb", size=base_256(mebibytes << 20)), GOOD + END
    if kind == "tar.zst":
        return zstd(head) + zstd(bytes(mebibytes << 20)) + zstd(tail)
    engine = zlib.compressobj(9, wbits=31)
    parts = [engine.compress(head), *(engine.compress(bytes(1 << 20)) for _ in range(mebibytes))]
    return b"".join([*parts, engine.compress(tail), engine.flush()])


def test_a_bomb_costs_no_memory_and_little_time(tmp_path: Path, kind: str) -> None:
    data = bomb(kind, 600)
    assert len(data) < 640_000
    before, began = peak_kib(), time.process_time()
    found, end = walk(kind, data, tmp_path)
    assert time.process_time() - began < 15 and peak_kib() - before < 60_000
    if kind == "tar.gz":  # no tighter than deflate can pack, and passed over
        assert [m.reject_reason for m in found] == [Reason.TOO_LARGE, None]
        assert list(fetch(found))[1] == b"hello" and end.status == SourceStatus.COMPLETE
    else:
        assert [m.reject_reason for m in found] == [Reason.TRUNCATED]
        assert end.status == SourceStatus.DAMAGED and "unpack to more" in (end.detail or "")


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_what_packs_well_is_no_bomb(tmp_path: Path, kind: str) -> None:
    flat = [bytes([i]) * (9 << 20) for i in range(4)]
    found, end = walk(kind, PACK[kind](tar(*((str(i), c) for i, c in enumerate(flat)))), tmp_path)
    assert list(fetch(found)) == flat and end.status == SourceStatus.COMPLETE


# -- reading


def test_shard_after_shard_unpacks_an_archive_once(
        tmp_path: Path, kind: str, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RANGE_BYTES", 100_000)
    contents = [noise(20_000, i) for i in range(100)]
    data = PACK[kind](tar(*((f"{i}.png", c) for i, c in enumerate(contents))))
    found, _ = walk(kind, data, tmp_path)
    assert sum(reads) == len(data) and len(reads) < 25
    reads.clear()
    for start in range(0, 100, 10):
        assert list(fetch(found[start:start + 10])) == contents[start:start + 10]
    assert sum(reads) <= len(data)
    assert list(fetch(found[:10])) == contents[:10]  # again from the front
    fetching._idle.clear()


def test_a_range_is_read_while_the_one_before_is_used(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RANGE_BYTES", 1000)
    path = tmp_path / "a"
    path.write_bytes(noise(2_500))
    asked = threading.Event()
    read_range = storage.read_range

    def noted(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        if offset == 1000:
            asked.set()
        return read_range(uri, offset, length, version=version)

    monkeypatch.setattr(storage, "read_range", noted)
    entry = entry_of(path)
    source = stream.Stream(entry.uri, entry.size, entry.version)
    first = source.read(10)
    assert asked.wait(10)
    rest = iter(source.read, b"")
    assert first + b"".join(rest) == noise(2_500)


@pytest.mark.parametrize("fault", ["changed", "vanished"])
def test_an_archive_lost_while_it_is_read_rejects_what_is_left(
        tmp_path: Path, kind: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RANGE_BYTES", 50_000)
    contents = [noise(40_000, i) for i in range(20)]
    found, _ = walk(kind, PACK[kind](tar(*((str(i), c) for i, c in enumerate(contents)))), tmp_path)
    reading = fetch(found)
    assert next(reading) == contents[0]
    if fault == "vanished":
        (tmp_path / "dump").unlink()
    else:
        (tmp_path / "dump").write_bytes(b"another")
    answers = list(reading)
    lost = [a.reason for a in answers if isinstance(a, ImageError)]
    assert len(lost) > 10 and set(lost) == {fault}
    assert answers[:19 - len(lost)] == contents[1:20 - len(lost)]


def test_an_archive_replaced_during_the_walk_is_noticed(
        tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RANGE_BYTES", 50_000)
    path = tmp_path / "dump"
    path.write_bytes(PACK[kind](tar(*((str(i), noise(40_000, i)) for i in range(20)))))
    members = walking(kind, path, ArchiveEnd())
    next(members)
    path.write_bytes(b"another")
    with pytest.raises(ObjectChangedError):
        list(members)


def test_storage_out_of_reach_says_nothing_about_an_image(
        tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = walk(kind, PACK[kind](tar(("a", b"1"), ("b", b"2"))), tmp_path)

    def down(*args: object, **kwargs: object) -> bytes:
        raise StorageError("down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_range", down)
        with pytest.raises(StorageError, match="down"):
            list(fetch(found))
    assert list(fetch(found)) == [b"1", b"2"]
