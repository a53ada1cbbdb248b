"""A dump as members: everything counted, nothing opened that should not be."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import tar

from igd import storage
from igd.data.fetch import fetch
from igd.data.members import Member
from igd.data.sources import SourceRecord, check_source, list_inputs, scan
from igd.errors import DataError, ObjectChangedError, ObjectDeniedError, StorageError
from igd.records import PLAN, Reason, SourceStatus


def packed(*members: tuple[str, bytes]) -> bytes:
    return gzip.compress(tar(*members))


def zipped(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def rows(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    names, images = zip(*members, strict=True)
    pq.write_table(pa.table({"image": images, "path": names}), out, row_group_size=1)
    return out.getvalue()


def scanned(uri: str) -> tuple[list[tuple[str, Member]], list[SourceRecord]]:
    records: list[SourceRecord] = []
    return list(scan(uri, records.append)), records


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


# -- directories and archives


def test_a_dump_is_every_file_and_every_member_once(root: str) -> None:
    files = {"weave/a.png": b"A", "notes.txt": b"not an image", ".hidden.png": b"h",
             "._x.png": b"fork", "empty.png": b"", "in.tar": tar(("t/1.png", b"1"), ("2", b"22")),
             "deep/in.ZIP": zipped(("z/3.png", b"333")),
             "in.parquet": rows(("p/4.png", b"4444"), ("5", b"5"), ("6", b"")),
             "deep/in.tgz": gzip.compress(tar(("g/7.png", b"77"), ("8", b""))),
             "in.tar.ZST": pa.Codec("zstd").compress(tar(("9", b"9")), asbytes=True)}
    for key, data in files.items():
        storage.write_bytes(storage.join(root, key), data)
    found, records = scanned(root)
    contents = dict(zip((path for path, _ in found), fetch([m for _, m in found]), strict=True))
    assert contents == {"weave/a.png": b"A", "notes.txt": b"not an image", ".hidden.png": b"h",
                        "._x.png": b"fork", "empty.png": b"", "t/1.png": b"1", "2": b"22",
                        "z/3.png": b"333", "p/4.png": b"4444", "5": b"5", "6": b"",
                        "g/7.png": b"77", "8": b"", "9": b"9"}
    assert len({m.image_id for _, m in found}) == len(found) == 14
    by_kind = {r.kind: (r.members, r.status) for r in records}
    assert by_kind == {kind: (count, SourceStatus.COMPLETE)
                       for kind, count in (("files", 5), ("tar", 2), ("zip", 1),
                                           ("parquet", 3), ("tar.gz", 2), ("tar.zst", 1))}
    again, _ = scanned(root)
    assert [m for _, m in again] == [m for _, m in found]


def test_one_archive_and_one_image_are_sources_too(root: str) -> None:
    storage.write_bytes(storage.join(root, "a b.tar"), tar(("x.png", b"1")))
    storage.write_bytes(storage.join(root, "ü 1.png"), b"2")
    found, records = scanned(storage.join(root, "a b.tar"))
    assert [path for path, _ in found] == ["x.png"] and [r.kind for r in records] == ["tar"]
    found, records = scanned(storage.join(root, "ü 1.png"))
    assert [path for path, _ in found] == ["ü 1.png"] and [r.kind for r in records] == ["files"]
    assert [entry.key for entry in list_inputs(storage.join(root, "ü 1.png"))] == ["ü 1.png"]


def test_the_content_says_which_archive_it_is(root: str) -> None:
    storage.write_bytes(storage.join(root, "really_zip.tar"), zipped(("a", b"1")))
    storage.write_bytes(storage.join(root, "really_tar.zip"), tar(("b", b"2")))
    storage.write_bytes(storage.join(root, "setup.zip"), b"MZ installer" + zipped(("c", b"3")))
    storage.write_bytes(storage.join(root, "really_rows.tar"), rows(("d", b"4")))
    storage.write_bytes(storage.join(root, "really_tar.parquet"), tar(("e", b"5")))
    found, records = scanned(root)
    assert {path: content for (path, _), content in
            zip(found, fetch([m for _, m in found]), strict=True)} == {
                "a": b"1", "b": b"2", "c": b"3", "d": b"4", "e": b"5"}
    kinds = {r.source_uri.rsplit("/", 1)[1]: r.kind for r in records if r.kind != "files"}
    assert kinds == {"really_zip.tar": "zip", "really_tar.zip": "tar", "setup.zip": "zip",
                     "really_rows.tar": "parquet", "really_tar.parquet": "tar"}


@pytest.mark.parametrize(("name", "data", "status"), [
    ("zero.tar", b"", SourceStatus.COMPLETE),
    ("zero.zip", b"", SourceStatus.COMPLETE),
    ("zero.parquet", b"", SourceStatus.COMPLETE),
    ("empty.tar", bytes(10_240), SourceStatus.COMPLETE),
    ("empty.zip", zipped(), SourceStatus.COMPLETE),
    ("zeros.zip", bytes(10_240), SourceStatus.DAMAGED),
    ("png.tar", b"\x89PNG\r\n\x1a\n" * 100, SourceStatus.DAMAGED),
    ("html.zip", b"<html>502</html>" * 100, SourceStatus.DAMAGED),
    ("html.parquet", b"<html>502</html>" * 100, SourceStatus.DAMAGED),
    ("short.tar", b"\0" * 100, SourceStatus.TRUNCATED),
    ("zero.tar.gz", b"", SourceStatus.COMPLETE),
    ("empty.tgz", gzip.compress(bytes(10_240)), SourceStatus.COMPLETE),
    ("html.tar.zst", b"<html>502</html>" * 100, SourceStatus.DAMAGED),
    ("html.tgz", gzip.compress(b"<html>502</html>" * 100), SourceStatus.DAMAGED),
    ("cut.zip", zipped(("a", b"x" * 500))[:40], SourceStatus.DAMAGED),
])
def test_an_archive_without_members_ends_with_a_status(
        tmp_path: Path, name: str, data: bytes, status: SourceStatus) -> None:
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path, tmp_path / name):
        found, records = scanned(str(source))
        ended = [r for r in records if r.kind != "files"]
        assert found == [] and [r.status for r in ended] == [status]
        assert ended[0].members == 0 and ended[0].bytes == len(data)
        assert ended[0].detail or status == SourceStatus.COMPLETE


def test_archives_within_archives_are_rejected_unread(tmp_path: Path) -> None:
    inner = ("in.tar", "in.ZIP", "in.tar.gz", "in.tgz", "in.tar.zst", "in.tar.xz", "in.parquet")
    for name, make in (("out.tar", tar), ("out.tgz", packed), ("out.zip", zipped),
                       ("out.parquet", rows)):
        (tmp_path / name).write_bytes(make(*((n, b"x") for n in inner), ("good.png", b"y")))
        found, _ = scanned(str(tmp_path / name))
        assert [m.reject_reason for _, m in found] == [Reason.NESTED] * 7 + [None]


@pytest.mark.parametrize("name", ["day.tar.bz2", "day.TXZ"])
def test_a_tar_packed_otherwise_is_refused_as_a_source_and_rejected_in_a_folder(
        tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"BZh9")
    with pytest.raises(DataError, match="bzip2 or xz"):
        check_source(str(tmp_path / name))
    check_source(str(tmp_path))
    found, _ = scanned(str(tmp_path))
    assert [m.reject_reason for _, m in found] == [Reason.FORMAT_NOT_ALLOWED]


def test_a_source_that_is_not_there_is_named(root: str) -> None:
    with pytest.raises(DataError, match="nowhere"):
        check_source(storage.join(root, "nowhere"))


def test_what_cannot_be_opened_is_a_reject_and_not_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "c").symlink_to(tmp_path)
    found, records = scanned(str(tmp_path))
    assert {path: m.reject_reason for path, m in found} == dict.fromkeys(
        ("a.tar", "b.png", "c"), Reason.NOT_REGULAR)
    assert records[0].members == 3


def test_a_file_over_the_limit_is_rejected(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(600 << 20)
    found, _ = scanned(str(tmp_path))
    assert found[0][1].reject_reason == Reason.TOO_LARGE


@pytest.mark.parametrize(("fault", "status"), [
    ("missing", SourceStatus.VANISHED), ("changed", SourceStatus.VANISHED)])
def test_an_archive_lost_between_listing_and_walk_costs_itself_only(
        tmp_path: Path, fault: str, status: SourceStatus) -> None:
    for name in ("1.tar", "2.tar", "3.tar"):
        (tmp_path / name).write_bytes(tar((name + ".png", b"x" * 400_000), ("last", b"")))
    records: list[SourceRecord] = []
    walking = scan(str(tmp_path), records.append)
    paths = [next(walking)[0]]
    if fault == "missing":
        (tmp_path / "2.tar").unlink()
    else:  # between its first and its second header
        paths += [next(walking)[0], next(walking)[0]]
        (tmp_path / "2.tar").write_bytes(tar(("other", b"")))
    paths += [path for path, _ in walking]
    ended = {r.source_uri[-5:]: r.status for r in records if r.kind != "files"}
    assert paths.count("last") == 2 and "other" not in paths
    if fault == "changed":
        assert ended["2.tar"] == status
    assert [s for s in ended.values() if s == SourceStatus.COMPLETE] == ["complete"] * 2


def test_storage_out_of_reach_is_not_taken_for_the_end_of_an_archive(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("a", b"x")))

    def down(*args: object, **kwargs: object) -> bytes:
        raise StorageError("endpoint down")

    monkeypatch.setattr(storage, "read_range", down)
    with pytest.raises(StorageError, match="down"):
        scanned(str(tmp_path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [tar, packed, zipped])
def test_every_container_keeps_twins_and_odd_names_apart(
        tmp_path: Path, make: Callable[..., bytes]) -> None:
    given = [("a.png", b"1"), ("a.png", b"1"), ("A.png", b"2"), ("\u00e9.png", b"3"),
             ("e\u0301.png", b"4"), ("../a.png", b"5"), ("=cmd|' /C calc'!A0.png", b"6"),
             ("\u202egnp.png", b"7"), ("x\ny\x1b[2J.png", b"8")]
    (tmp_path / "a.tar").write_bytes(make(*given))
    found, records = scanned(str(tmp_path / "a.tar"))
    assert [path for path, _ in found] == [name for name, _ in given]
    assert list(fetch([m for _, m in found])) == [content for _, content in given]
    assert len({m.image_id for _, m in found}) == len(given)
    assert [m.ordinal for _, m in found] == list(range(len(given)))
    assert records[0].status == SourceStatus.COMPLETE


@pytest.mark.parametrize("make", [tar, packed, zipped, rows])
def test_an_archive_that_may_not_be_read_costs_itself_only(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., bytes]) -> None:
    for name in ("1.tar", "2.tar", "3.tar"):
        (tmp_path / name).write_bytes(make((f"{name}.png", b"x")))
    read_range = storage.read_range

    def refusing(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        if uri.endswith("2.tar"):
            raise ObjectDeniedError("refused")
        return read_range(uri, offset, length, version=version)

    monkeypatch.setattr(storage, "read_range", refusing)
    found, records = scanned(str(tmp_path))
    assert [path for path, _ in found] == ["1.tar.png", "3.tar.png"]
    assert {r.source_uri[-5:]: r.status for r in records if r.kind != "files"} == {
        "1.tar": "complete", "2.tar": "denied", "3.tar": "complete"}


def test_a_folder_that_may_not_be_read_leaves_its_source_incomplete(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    shut = storage.Entry(storage.canonical(str(tmp_path / "shut")), "shut", 0, "", "denied")
    listed = list(storage.list_objects(str(tmp_path)))
    monkeypatch.setattr(storage, "list_objects", lambda uri: iter([*listed, shut]))
    found, records = scanned(str(tmp_path))
    assert [(path, member.reject_reason) for path, member in found] == [
        ("a.png", None), ("shut", "denied")]
    assert records[0].status == SourceStatus.DENIED and "shut" in str(records[0].detail)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_nothing_is_written_to_disk_by_reading_a_hostile_archive(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for path in ("link/canary", "../canary", f"{tmp_path}/canary"):
            info = tarfile.TarInfo(path)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    whole = out.getvalue()
    (inside / name).write_bytes(gzip.compress(whole) if name == "a.tgz" else whole)
    opened: list[str] = []
    watching = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(args[2], int) and (
                args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            opened.append(str(args[0]))

    sys.addaudithook(hook)
    found, _ = scanned(str(inside))
    contents = list(fetch([m for _, m in found]))
    watching = False
    assert contents[1:] == [b"x"] * 3 and opened == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == [name, "in"]


# -- identity


MEMBER = Member(source_uri="s3://b/a.tar", source_version="v1", ordinal=3, raw_name=b"x.png",
                kind="tar", span=10, size=10)


def test_an_id_is_golden() -> None:
    assert MEMBER.image_id == "95d7902ba49243edddd5c202ccd3409f"


@pytest.mark.parametrize("change", [
    {"source_uri": "s3://b/b.tar"}, {"source_version": "v2"}, {"ordinal": 4},
    {"raw_name": b"X.png"}, {"raw_name": b"x.png\0"}])
def test_an_id_changes_with_each_part_of_the_identity(change: dict[str, object]) -> None:
    assert dataclasses.replace(MEMBER, **change).image_id != MEMBER.image_id


def test_an_id_does_not_change_with_what_is_not_identity() -> None:
    assert dataclasses.replace(MEMBER, offset=9, span=1, size=2, method=8, crc=1,
                               reject_reason="crc").image_id == MEMBER.image_id


PART = st.text("a1", max_size=3)


@given(st.tuples(PART, PART, st.integers(0, 12), PART), st.tuples(PART, PART, st.integers(0, 12),
                                                                  PART))
def test_two_identities_never_run_into_one_id(
        a: tuple[str, str, int, str], b: tuple[str, str, int, str]) -> None:
    ids = [Member(source_uri=uri, source_version=version, ordinal=ordinal, raw_name=name.encode(),
                  span=0, size=0).image_id for uri, version, ordinal, name in (a, b)]
    assert (ids[0] == ids[1]) == (a == b)


def test_odd_names_make_rows_of_valid_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "a.tar").write_bytes(tar((os.fsdecode(b"\xfe\n\\x41"), b"x"), ("\u202ea", b"y")))
    found, _ = scanned(str(tmp_path))
    table = pa.table({name: [getattr(m, "name" if name == "member" else name) for _, m in found]
                      for name in ("image_id", "source_uri", "source_version", "member")},
                     schema=pa.schema([PLAN.field(n) for n in
                                       ("image_id", "source_uri", "source_version", "member")]))
    table.validate(full=True)
    assert table["member"].to_pylist() == ["\\xfe\n\\\\x41", "\u202ea", ""]
    assert table["source_uri"][2].as_py().endswith("/%FF.png")


def test_a_file_replaced_after_it_was_listed_has_another_id(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (_, before), = scanned(str(tmp_path))[0]
    (tmp_path / "a.png").write_bytes(b"xy")
    (_, after), = scanned(str(tmp_path))[0]
    assert before.image_id != after.image_id
    with pytest.raises(ObjectChangedError):
        storage.read_bytes(before.source_uri, version=before.source_version)
