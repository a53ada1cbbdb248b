"""The tar walk: what Python's tarfile wrote is found again, and nothing hostile stops it."""

from __future__ import annotations

import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tars import END, GOOD, base_256, header, padded, pax, tar, tar_of_kinds

from igd import storage
from igd.data.fetch import fetch
from igd.data.members import ArchiveEnd, Member, escape_name, unescape_name
from igd.data.tarindex import BLOCK, MAX_EXTENSION_BYTES, looks_like_tar, walk_tar
from igd.errors import ObjectChangedError
from igd.records import PLAN, Reason, SourceStatus

HUGE = [1 << 40, 1 << 60, 1 << 63]

Edit = Callable[[tarfile.TarInfo], None]


def walk(data: bytes, folder: Path | str) -> tuple[list[Member], ArchiveEnd]:
    path = Path(folder, "dump.tar")
    path.write_bytes(data)
    entry = storage.stat(str(path))
    assert entry is not None
    end = ArchiveEnd()
    return list(walk_tar(entry, end)), end


def names(members: list[Member], reason: str | None = None) -> list[bytes]:
    return [member.raw_name for member in members if member.reject_reason == reason]


# -- round trips

NAME = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
            max_size=40),
    st.binary(min_size=1, max_size=40).map(
        lambda raw: os.fsdecode(raw.replace(b"\0", b"\xff"))),
    st.builds(lambda part, count: "/".join([part] * count), st.text("ab é", min_size=1, max_size=9),
              st.integers(1, 60)),
).filter(lambda name: bool(name.strip("/")))
KIND = st.sampled_from([tarfile.REGTYPE] * 6 + [
    tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.FIFOTYPE, tarfile.CHRTYPE])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members=st.lists(st.tuples(NAME, st.binary(max_size=1100), KIND), max_size=6))
@example(members=[("same", b"1", b"0"), ("same", b"2", b"0"), ("SAME", b"3", b"0"),
                  ("\u00e9", b"", b"0"), ("e\u0301", b"x" * 512, b"0")])
def test_what_tarfile_wrote_is_found_in_its_order(
        format: int, members: list[tuple[str, bytes, bytes]]) -> None:
    whole, written = tar_of_kinds(members, format)
    if any(kind == b"\0" and name.endswith("/") and data for name, data, kind in written):
        return  # tarfile itself cannot read back what it wrote
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(whole, folder)
        contents = list(fetch(found))
    kept = [(os.fsencode(name), data, kind) for name, data, kind in written
            if kind != tarfile.DIRTYPE and not (kind == b"\0" and name.endswith("/"))]
    assert [m.raw_name for m in found] == [name for name, _, _ in kept]
    assert [m.ordinal for m in found] == list(range(len(kept)))
    assert (end.status, end.detail) == (SourceStatus.COMPLETE, None)
    for member, content, (_, data, kind) in zip(found, contents, kept, strict=True):
        if kind in (b"0", b"\0", b"7"):
            assert content == data and member.size == len(data)
        else:
            assert member.reject_reason == Reason.NOT_REGULAR and isinstance(content, Exception)


@given(st.binary(max_size=60))
@example(b"\\x41\\\\\xed\xa0\x80\\")
def test_any_raw_name_becomes_text_and_comes_back(raw: bytes) -> None:
    text = escape_name(raw)
    assert text.encode("utf-8") is not None and unescape_name(text) == raw


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_two_raw_names_never_become_one_text(a: bytes, b: bytes) -> None:
    assert (escape_name(a) == escape_name(b)) == (a == b)


def test_names_of_64_kb_are_kept_and_of_2_mb_refused(tmp_path: Path) -> None:
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found, end = walk(tar(("n" * 65_536, b"x"), format=format), tmp_path)
        assert names(found) == [b"n" * 65_536] and end.status == SourceStatus.COMPLETE
        found, end = walk(tar(("n" * (MAX_EXTENSION_BYTES + 1), b"x"), format=format), tmp_path)
        assert found == [] and end.status == SourceStatus.DAMAGED


def test_names_that_lead_out_of_the_archive_are_kept_as_they_are(tmp_path: Path) -> None:
    hostile = ("../../canary", "/etc/canary", "a/../../canary", "link/canary", "=cmd|'/c calc'!A0",
               "a\nb\x1b[2J.png", "\u202egnp.exe")
    found, end = walk(tar(*((name, b"x") for name in hostile)), tmp_path)
    assert names(found) == [name.encode() for name in hostile]
    assert end.status == SourceStatus.COMPLETE
    assert [path.name for path in tmp_path.iterdir()] == ["dump.tar"]


def test_an_old_header_without_a_magic_has_no_prefix(tmp_path: Path) -> None:
    old = header(b"old.png", magic=b"", kind=b"\0", prefix=b"never")
    gnu = header(b"gnu.png", magic=b"ustar  \0", prefix=b"14700000000")
    posix = header(b"new.png", prefix=b"some/folder")
    found, _ = walk(b"".join(h + padded(b"hello") for h in (old, gnu, posix)) + END, tmp_path)
    assert names(found) == [b"old.png", b"gnu.png", b"some/folder/new.png"]


# -- links, devices, sparse files


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_and_devices_are_rejected_and_hide_nothing_by_their_size(
        tmp_path: Path, kind: bytes) -> None:
    link = header(b"link", kind=kind, link=b"/etc/passwd", size=b"00000001000\0")
    found, end = walk(GOOD + link + GOOD + END, tmp_path)
    assert names(found) == [b"good.png"] * 2 and names(found, Reason.NOT_REGULAR) == [b"link"]
    assert [m.ordinal for m in found] == [0, 1, 2] and end.status == SourceStatus.COMPLETE


def test_a_folder_is_no_member_and_its_stated_size_hides_nothing(tmp_path: Path) -> None:
    folder = header(b"folder/", kind=b"5", size=b"00000001000\0")
    old = header(b"old/", kind=b"\0", size=b"00000000000\0", magic=b"")
    found, end = walk(folder + old + GOOD + END, tmp_path)
    assert names(found) == [b"good.png"] and end.status == SourceStatus.COMPLETE


def test_a_file_with_a_slash_at_its_end_is_still_a_member(tmp_path: Path) -> None:
    found, _ = walk(header(b"odd/") + padded(b"hello") + GOOD + END, tmp_path)
    assert names(found) == [b"odd/", b"good.png"]


def test_a_gnu_sparse_file_with_a_long_map_is_rejected_and_the_next_is_found(
        tmp_path: Path) -> None:
    more, last = bytearray(BLOCK), bytes(BLOCK)
    more[504] = 1
    sparse = header(b"hole", kind=b"S", magic=b"ustar  \0", sparse_more=b"\1")
    found, end = walk(sparse + bytes(more) + last + padded(b"hello") + GOOD + END, tmp_path)
    assert names(found, Reason.SPARSE) == [b"hole"] and names(found) == [b"good.png"]
    assert end.status == SourceStatus.COMPLETE
    found, end = walk(sparse + bytes(more), tmp_path)
    assert found == [] and end.status == SourceStatus.TRUNCATED


@pytest.mark.parametrize("record", [b"GNU.sparse.major=1", b"GNU.sparse.size=1099511627776",
                                    b"GNU.sparse.map=0,1"])
def test_a_pax_sparse_file_is_rejected(tmp_path: Path, record: bytes) -> None:
    found, end = walk(pax(record) + header(b"hole") + padded(b"hello") + GOOD + END, tmp_path)
    assert names(found, Reason.SPARSE) == [b"hole"] and names(found) == [b"good.png"]
    assert end.status == SourceStatus.COMPLETE


# -- cut archives


def test_a_cut_at_any_byte_loses_only_what_it_cut_and_is_reported(tmp_path: Path) -> None:
    whole = tar(("a", b"1" * 600), ("n" * 120, b""), ("b", b"2" * 512), format=tarfile.GNU_FORMAT)
    complete = len(whole.rstrip(b"\0"))
    wanted = [b"1" * 600, b"", b"2" * 512]
    for cut in sorted({*range(0, complete, 37), *range(0, complete, BLOCK), 512 + 601,
                       complete - 1}):
        found, end = walk(whole[:cut], tmp_path)
        good = [content for content in fetch(found) if isinstance(content, bytes)]
        assert good == wanted[:len(good)] and end.status != SourceStatus.COMPLETE, cut
        ended = cut % BLOCK == 0 or names(found, Reason.TRUNCATED) == []
        assert end.detail
        if names(found, Reason.TRUNCATED):
            assert end.status == SourceStatus.TRUNCATED and len(found) == len(good) + 1
        else:
            assert ended


def test_a_cut_at_a_member_boundary_is_no_end_marker(tmp_path: Path) -> None:
    found, end = walk(GOOD * 3, tmp_path)
    assert names(found) == [b"good.png"] * 3 and end.status == SourceStatus.NO_END_MARKER


def test_a_cut_inside_the_padding_keeps_the_whole_member(tmp_path: Path) -> None:
    found, end = walk(GOOD + header() + b"hello", tmp_path)
    assert list(fetch(found)) == [b"hello"] * 2 and end.status == SourceStatus.NO_END_MARKER


def test_a_cut_in_a_member_rejects_it_as_truncated(tmp_path: Path) -> None:
    found, end = walk(GOOD + header(b"cut.png") + b"hell", tmp_path)
    assert names(found) == [b"good.png"] and names(found, Reason.TRUNCATED) == [b"cut.png"]
    assert end.status == SourceStatus.TRUNCATED


def test_one_zero_block_ends_an_archive(tmp_path: Path) -> None:
    found, end = walk(GOOD + bytes(BLOCK), tmp_path)
    assert (len(found), end.status, end.detail) == (1, SourceStatus.COMPLETE, None)


@pytest.mark.parametrize("tail", [b"garbage", END[:BLOCK] + GOOD + END, bytes(1 << 20)])
def test_what_follows_the_end_marker_is_said_and_not_read(tmp_path: Path, tail: bytes) -> None:
    found, end = walk(GOOD + END + tail, tmp_path)
    assert names(found) == [b"good.png"] and end.status == SourceStatus.COMPLETE
    assert end.detail and "after the end marker" in end.detail


def test_padding_to_a_record_is_not_worth_a_word(tmp_path: Path) -> None:
    _, end = walk(GOOD + END + bytes(10_240 * 20), tmp_path)
    assert end.detail is None


# -- lies


@pytest.mark.parametrize(("how", "declared"), [
    *(("pax", size) for size in HUGE), *(("base-256", size) for size in [*HUGE, 1 << 86])])
def test_a_member_that_declares_the_impossible_is_rejected_at_once(
        tmp_path: Path, how: str, declared: int) -> None:
    liar = (header(b"liar.png", size=base_256(declared)) if how == "base-256"
            else pax(b"size=%d" % declared) + header(b"liar.png"))
    began = time.process_time()
    found, end = walk(GOOD + liar + b"x" * 1500, tmp_path)
    assert time.process_time() - began < 1
    assert names(found) == [b"good.png"] and names(found, Reason.TRUNCATED) == [b"liar.png"]
    assert end.status == SourceStatus.TRUNCATED
    assert -1 <= found[1].size < 1 << 63 and PLAN.field("size").type.bit_width == 64


def test_a_member_over_the_limit_is_rejected_and_the_next_is_found(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd.data.tarindex.MAX_MEMBER_BYTES", 1000)
    found, _ = walk(tar(("big", b"x" * 1001), ("fits", b"x" * 1000)), tmp_path)
    assert names(found, Reason.TOO_LARGE) == [b"big"] and names(found) == [b"fits"]


DAMAGED = {
    "negative base-256": header(size=base_256(-512)),
    "negative octal": header(size=b"-0000000512\0"),
    "size no number": header(size=b"zzzzzzzzzzz\0"),
    "bad checksum": GOOD[:100] + b"\x7f" + GOOD[101:],
    "noise": bytes(range(256)) * 2,
    "pax without length": header(kind=b"x") + padded(b"path=") + GOOD,
    "pax length zero": header(kind=b"x", size=b"00000000007\0") + padded(b"0 a=bc\n") + GOOD,
    "pax length past the end": header(kind=b"x") + padded(b"99 a=b\n"[:5]) + GOOD,
    "pax without newline": header(kind=b"x", size=b"00000000010\0") + padded(b"8 a=bcde") + GOOD,
    "pax without equals": header(kind=b"x", size=b"00000000006\0") + padded(b"6 abc\n") + GOOD,
    "pax negative size": None,
    "pax word for a size": None,
    "pax of 1 GB": header(kind=b"x", size=b"10000000000\0") + GOOD,
    "long name of 1 GB": header(kind=b"L", size=b"10000000000\0") + GOOD,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_ends_the_walk_and_is_reported(tmp_path: Path, case: str) -> None:
    bad = DAMAGED[case] or pax(b"size=-512" if "negative" in case else b"size=many") + GOOD
    found, end = walk(GOOD + bad + GOOD + END, tmp_path)
    assert names(found) == [b"good.png"] and end.status == SourceStatus.DAMAGED
    assert end.detail and "at byte 1024" in end.detail


def test_a_checksum_summed_over_signed_bytes_is_accepted(tmp_path: Path) -> None:
    block = bytearray(header(b"\xff.png"))
    block[148:156] = b"%06o\0 " % (int(block[148:154], 8) - 256)
    found, _ = walk(bytes(block) + padded(b"hello") + END, tmp_path)
    assert names(found) == [b"\xff.png"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_bytes_stop_the_walk_with_anything_but_a_status(data: st.DataObject) -> None:
    whole = bytearray(tar(("a" * 120, b"1" * 600), ("b", b"2"), format=tarfile.PAX_FORMAT)[:5120])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    block = data.draw(st.integers(0, len(whole) // BLOCK - 1)) * BLOCK
    whole[block + 148:block + 156] = b" " * 8
    whole[block + 148:block + 156] = b"%06o\0 " % sum(whole[block:block + BLOCK])
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(bytes(whole), folder)
        contents = list(fetch(found))
    assert isinstance(end.status, SourceStatus) and len(contents) == len(found)
    assert all(member.name.encode("utf-8") is not None for member in found)


# -- reading


def test_2000_small_members_cost_a_few_reads(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar(*((f"{i}.png", b"x" * 700) for i in range(2000)))
    calls: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        calls.append(length)
        return read_range(uri, offset, length, version=version)

    monkeypatch.setattr(storage, "read_range", counted)
    found, _ = walk(data, tmp_path)
    assert len(found) == 2000 and len(calls) < 20 and sum(calls) < 1.1 * len(data)
    calls.clear()
    assert list(fetch(found)) == [b"x" * 700] * 2000
    assert len(calls) < 4 and sum(calls) < len(data)


def test_large_bodies_are_hopped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        calls.append(length)
        return read_range(uri, offset, length, version=version)

    monkeypatch.setattr(storage, "read_range", counted)
    found, _ = walk(tar(*((str(i), bytes(8 << 20)) for i in range(4))), tmp_path)
    assert len(found) == 4 and sum(calls) < 2 << 20


def test_an_archive_replaced_during_the_walk_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "dump.tar"
    path.write_bytes(tar(*((str(i), b"x" * 300_000) for i in range(3))))
    entry = storage.stat(str(path))
    assert entry is not None
    walking = walk_tar(entry, ArchiveEnd())
    assert next(walking).raw_name == b"0"
    path.write_bytes(tar(*((str(i), b"y" * 299_999) for i in range(4))))
    with pytest.raises(ObjectChangedError):
        list(walking)


def test_only_a_header_looks_like_a_tar() -> None:
    assert looks_like_tar(GOOD[:BLOCK])
    for block in (bytes(BLOCK), b"", GOOD[:511], b"PK\3\4" + bytes(508), b"\x89PNG" * 128):
        assert not looks_like_tar(block)
