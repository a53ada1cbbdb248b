"""The zip index: what zipfile wrote is found again, and every lie costs its own member only."""

from __future__ import annotations

import io
import struct
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from igd import storage
from igd.data import zipindex
from igd.data.fetch import fetch
from igd.data.members import ArchiveEnd, Member
from igd.data.zipindex import walk_zip
from igd.errors import ImageError, ObjectChangedError
from igd.records import Reason, SourceStatus

LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"


def walk(data: bytes, folder: Path | str) -> tuple[list[Member], ArchiveEnd]:
    path = Path(folder, "dump.zip")
    path.write_bytes(data)
    entry = storage.stat(str(path))
    assert entry is not None
    end = ArchiveEnd()
    return list(walk_zip(entry, end)), end


def make(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def patch(data: bytes, magic: bytes, field: int, value: bytes, which: int = 0) -> bytes:
    """Overwrites bytes at `field` of the `which`-th header of that magic."""
    at = -1
    for _ in range(which + 1):
        at = data.index(magic, at + 1)
    return data[:at + field] + value + data[at + field + len(value):]


def reasons(members: list[Member]) -> dict[bytes, str | None]:
    """The first reason of each name, when listed or when fetched."""
    return {m.raw_name: content.reason if isinstance(content, ImageError) else None
            for m, content in zip(members, fetch(members), strict=True)}


class Pipe(io.RawIOBase):
    """What zipfile writes to when it cannot seek: sizes follow the data."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


# -- round trips

NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
               max_size=30).filter(lambda name: not name.endswith("/"))

COMMENT = st.binary(max_size=200).filter(lambda text: b"PK" not in text)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members=st.lists(st.tuples(NAME, st.binary(max_size=3000), st.booleans()), max_size=6),
       seekable=st.booleans(), zip64=st.booleans(), comment=COMMENT,
       junk=st.binary(max_size=700), folder_first=st.booleans())
@example(members=[("same", b"1", True), ("SAME", b"2", False), ("\u00e9", b"", True),
                  ("e\u0301", b"x" * 70_000, True), ("n" * 300, b"y", False)],
         seekable=False, zip64=True, comment=b"said" * 9, junk=b"", folder_first=True)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_zipfile_wrote_is_found_in_its_order(
        members: list[tuple[str, bytes, bool]], seekable: bool, zip64: bool, comment: bytes,
        junk: bytes, folder_first: bool) -> None:
    out = io.BytesIO() if seekable else Pipe()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = comment
        if folder_first:
            archive.writestr("folder/", b"")
        for name, data, packed in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=zip64) as file:
                file.write(data)
    written = out.getvalue() if isinstance(out, io.BytesIO) else bytes(out.data)
    if junk and not comment:
        written = junk + written
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(written, folder)
        contents = list(fetch(found))
    assert [m.name.replace("\\\\", "\\") for m in found] == [name for name, _, _ in members]
    assert contents == [data for _, data, _ in members]
    assert [m.ordinal for m in found] == list(range(len(members)))
    assert (end.status, end.detail) == (SourceStatus.COMPLETE, None)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_two_members(tmp_path: Path) -> None:
    found, _ = walk(make(("a.png", b"1"), ("a.png", b"2")), tmp_path)
    assert list(fetch(found)) == [b"1", b"2"] and len({m.image_id for m in found}) == 2


def test_a_name_that_is_not_utf8_is_kept_byte_for_byte(tmp_path: Path) -> None:
    data = make(("abcd.png", b"x")).replace(b"abcd.png", b"\xff\x81\\x.png")
    found, _ = walk(data, tmp_path)
    assert found[0].raw_name == b"\xff\x81\\x.png" and found[0].name == "\\xff\\x81\\\\x.png"
    assert list(fetch(found)) == [b"x"]


@pytest.mark.parametrize("name", [b"", b"\0bcd.png", b"dir/\0png", b"../../et", b"/etc/pwd"])
def test_odd_names_are_members_and_none_stops_the_walk(tmp_path: Path, name: bytes) -> None:
    if name:
        data = make(("abcd.png", b"x"), ("good", b"y")).replace(b"abcd.png", name)
    else:
        data = make(("", b"x"), ("good", b"y"))
    found, end = walk(data, tmp_path)
    assert [m.raw_name for m in found] == [name, b"good"] and end.status == SourceStatus.COMPLETE
    assert list(fetch(found)) == [b"x", b"y"]


def test_a_folder_name_with_content_is_still_a_member(tmp_path: Path) -> None:
    found, _ = walk(make(("folder/", b""), ("odd/", b"x")), tmp_path)
    assert [m.raw_name for m in found] == [b"odd/"] and list(fetch(found)) == [b"x"]


def test_70000_entries_are_listed_with_few_reads(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        calls.append(length)
        return read_range(uri, offset, length, version=version)

    data = make(*((f"{i:05d}", b"") for i in range(70_000)), method=zipfile.ZIP_STORED)
    monkeypatch.setattr(storage, "read_range", counted)
    found, end = walk(data, tmp_path)
    assert len(found) == 70_000 and end.status == SourceStatus.COMPLETE
    assert len(calls) < 60 and sum(calls) < len(data)


# -- members that are refused when listed


def test_an_encrypted_member_is_rejected(tmp_path: Path) -> None:
    data = patch(make(("a", b"x"), ("b", b"y")), CENTRAL, 8, b"\1\0")
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.ENCRYPTED, b"b": None}


@pytest.mark.parametrize("method", [6, 9, 12, 14, 93, 95, 98])
def test_an_unknown_packing_is_rejected(tmp_path: Path, method: int) -> None:
    data = patch(make(("a", b"x"), ("b", b"y")), CENTRAL, 10, struct.pack("<H", method))
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.METHOD, b"b": None}


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o040755])
def test_a_link_or_device_is_rejected(tmp_path: Path, mode: int) -> None:
    data = patch(make(("a", b"/etc/passwd"), ("b", b"y")), CENTRAL, 38,
                 struct.pack("<I", mode << 16))
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.NOT_REGULAR, b"b": None}


def test_a_member_of_more_than_the_limit_is_rejected_unread(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipindex, "MAX_MEMBER_BYTES", 1000)
    found, _ = walk(make(("big", b"x" * 1001), ("fits", b"x" * 1000)), tmp_path)
    assert reasons(found) == {b"big": Reason.TOO_LARGE, b"fits": None} and found[0].span == 0


def test_a_ratio_deflate_cannot_reach_is_a_lie(tmp_path: Path) -> None:
    data = patch(make(("a", b"x" * 1000), ("b", b"y")), CENTRAL, 24, struct.pack("<I", 500 << 20))
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.TOO_LARGE, b"b": None}


def test_a_bomb_unpacks_no_further_than_it_declares(tmp_path: Path) -> None:
    bomb = patch(make(("a", bytes(64 << 20)), ("b", b"y")), CENTRAL, 24, struct.pack("<I", 1000))
    assert reasons(walk(bomb, tmp_path)[0]) == {b"a": Reason.CORRUPT, b"b": None}
    zeros = zlib.compressobj(wbits=-15)
    packed = zeros.compress(bytes(64 << 20)) + zeros.flush()
    assert len(packed) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more than"):
            zipindex._inflate(packed, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def entries(name: bytes, offset: int, packed: int, size: int, count: int, extra: bytes = b""
            ) -> bytes:
    one = struct.pack("<4s6H3I5H2I", CENTRAL, 20, 45, 0, 8, 0, 0, 0, packed, size, len(name),
                      len(extra), 0, 0, 0, 0, offset) + name + extra
    return one * count


def ending(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, 0)


def test_entries_that_share_one_body_are_overlaps(tmp_path: Path) -> None:
    kernel = make(("k", bytes(16 << 20)))[:-22]  # 16 MB in 16 KB, named a thousand times
    body, central = kernel[:kernel.index(CENTRAL)], kernel[kernel.index(CENTRAL):]
    data = body + central * 1000 + ending(1000, len(central) * 1000, len(body))
    assert len(data) < 110_000
    began = time.process_time()
    found, _ = walk(data, tmp_path)
    assert {m.reject_reason for m in found} == {Reason.OVERLAP} and len(found) == 1000
    assert sum(m.span for m in found) == 0 and time.process_time() - began < 1


def test_a_body_that_reaches_into_the_next_member_is_an_overlap(tmp_path: Path) -> None:
    whole = make(("a", b"x" * 50), ("b", b"y" * 50), method=zipfile.ZIP_STORED)
    longer = patch(whole, CENTRAL, 20, struct.pack("<II", 120, 120))
    assert reasons(walk(longer, tmp_path)[0]) == {b"a": Reason.OVERLAP, b"b": None}
    last = patch(whole, CENTRAL, 20, struct.pack("<II", 120, 120), which=1)
    assert reasons(walk(last, tmp_path)[0]) == {b"a": None, b"b": Reason.OVERLAP}


@pytest.mark.parametrize("offset", [0xFFFFFF00, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_an_offset_that_is_nowhere_is_rejected_and_fits_a_row(
        tmp_path: Path, offset: int) -> None:
    extra = struct.pack("<HHQQ", 1, 16, (1 << 64) - 1, offset)
    if offset < 1 << 32:
        central = entries(b"a", offset, 1, 1, 1)
    else:
        central = entries(b"a", 0xFFFFFFFF, 1, 0xFFFFFFFF, 1, extra)
    good = make(("good", b"y"))
    body = good[:good.index(CENTRAL)]
    central += good[good.index(CENTRAL):-22]
    found, end = walk(body + central + ending(2, len(central), len(body)), tmp_path)
    assert reasons(found) == {b"a": Reason.OVERLAP, b"good": None}
    assert end.status == SourceStatus.COMPLETE
    assert all(-1 << 63 <= number < 1 << 63 for m in found for number in (m.offset, m.size))


def test_a_directory_that_says_it_lies_further_on_makes_no_negative_offsets(
        tmp_path: Path) -> None:
    data = make(("a", b"x"), ("b", b"y"))
    at = len(data) - 22 + 16
    shifted = data[:at] + struct.pack("<I", len(data)) + data[at + 4:]
    found, _ = walk(shifted, tmp_path)
    assert len(found) == 2 and set(reasons(found).values()) <= {Reason.OVERLAP, Reason.CORRUPT}


# -- members that are refused when read


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = patch(make(("a", b"x" * 99), ("b", b"y"), method=method), CENTRAL, 16, b"\1\2\3\4")
        assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.CRC, b"b": None}


def test_a_flipped_bit_never_gives_other_bytes(tmp_path: Path) -> None:
    whole = make(("a", bytes(range(200))), ("b", b"y"))
    start = whole.index(LOCAL) + 31
    for at in range(start, whole.index(LOCAL, start), 3):
        found, _ = walk(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:], tmp_path)
        content = next(fetch(found))
        if isinstance(content, ImageError):
            assert content.reason in (Reason.CRC, Reason.CORRUPT, Reason.TRUNCATED)
        else:  # a bit that deflate leaves unused
            assert content == bytes(range(200))


def test_a_local_header_of_another_name_is_a_mismatch(tmp_path: Path) -> None:
    data = patch(make(("a.png", b"x"), ("b.png", b"y")), LOCAL, 30, b"c.png")
    assert reasons(walk(data, tmp_path)[0]) == {b"a.png": Reason.NAME_MISMATCH, b"b.png": None}


def test_no_local_header_is_corrupt(tmp_path: Path) -> None:
    data = patch(make(("a", b"x"), ("b", b"y")), LOCAL, 0, b"nope")
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.CORRUPT, b"b": None}


def test_a_stored_member_shorter_than_declared_is_truncated(tmp_path: Path) -> None:
    data = make(("a", b"x" * 10), method=zipfile.ZIP_STORED)
    data = patch(data, CENTRAL, 24, struct.pack("<I", 11))
    assert reasons(walk(data, tmp_path)[0]) == {b"a": Reason.TRUNCATED}


# -- archives that are refused


def test_an_empty_zip_is_complete(tmp_path: Path) -> None:
    assert walk(make(), tmp_path) == ([], ArchiveEnd())


@pytest.mark.parametrize("keep", [10, 60, -1, -10, -22])
def test_a_zip_without_its_end_is_damaged(tmp_path: Path, keep: int) -> None:
    found, end = walk(make(("a", b"x" * 99), ("b", b"y"))[:keep], tmp_path)
    assert found == [] and end.status == SourceStatus.DAMAGED and end.detail


def test_a_directory_larger_than_the_cap_is_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(*((f"{i:0100d}", b"") for i in range(1000)))
    monkeypatch.setattr(zipindex, "MAX_DIRECTORY_BYTES", 100_000)
    found, end = walk(data, tmp_path)
    assert found == [] and end.status == SourceStatus.DAMAGED and "100000" in (end.detail or "")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_bytes_stop_the_walk_with_anything_but_a_status(data: st.DataObject) -> None:
    whole = bytearray(make(("a", b"1" * 60), ("é", b"2"), ("c", b"")))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.sampled_from([0, 1, 0x2F, 0x50, 0x7F, 0x80, 0xFF]))
    with tempfile.TemporaryDirectory() as folder:
        found, end = walk(bytes(whole), folder)
        contents = list(fetch(found))
    assert isinstance(end.status, SourceStatus) and len(contents) == len(found)


def test_a_zip_replaced_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    found, _ = walk(make(("a", b"x")), tmp_path)
    (tmp_path / "dump.zip").write_bytes(make(("a", b"zz")))
    assert reasons(found) == {b"a": Reason.CHANGED}
    entry = storage.stat(str(tmp_path / "dump.zip"))
    assert entry is not None
    (tmp_path / "dump.zip").write_bytes(make(("a", b"yyy")))
    with pytest.raises(ObjectChangedError):
        list(walk_zip(entry, ArchiveEnd()))
