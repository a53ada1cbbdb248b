"""Parquet as a source: a member a row, images read late, little at a time, and never unpickled."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import encryption

from igd import storage
from igd.data import fetch as fetching
from igd.data import parquet
from igd.data.fetch import fetch
from igd.data.members import Member
from igd.data.parquet import UnusableError, find_columns
from igd.data.selection import Picker, selection
from igd.data.sources import NESTED_SUFFIXES, SourceRecord, scan
from igd.errors import ImageError, StorageError
from igd.records import Reason, SourceStatus

HUGGINGFACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(count: int, size: int = 1000) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def scanned(uri: str) -> tuple[list[Member], SourceRecord]:
    records: list[SourceRecord] = []
    members = [member for _, member in scan(uri, records.append)]
    return members, records[0]


def reasons(members: list[Member]) -> list[str | None]:
    return [content.reason if isinstance(content, ImageError) else None
            for content in fetch(members)]


class Reads:
    """The ranges that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        self._read = storage.read_range
        monkeypatch.setattr(storage, "read_range", self)

    def __call__(self, uri: str, offset: int, length: int, *, version: str) -> bytes:
        self.calls.append((offset, length))
        return self._read(uri, offset, length, version=version)

    def take(self) -> int:
        """Bytes read since the last time."""
        total = sum(length for _, length in self.calls)
        self.calls.clear()
        return total


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


# -- rows and names

NAMES = st.text(max_size=12).filter(
    lambda name: not name.lower().encode().endswith(NESTED_SUFFIXES))

@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(st.one_of(st.none(), st.binary(max_size=300)),
                               st.one_of(st.none(), NAMES)), max_size=40),
       nested=st.booleans(), group=st.integers(1, 50), batch=st.integers(1, 50),
       compression=st.sampled_from(["none", "snappy", "zstd", "gzip"]),
       dictionary=st.booleans(), page=st.sampled_from(["1.0", "2.0"]), data=st.data())
def test_every_row_is_a_member_whatever_order_it_is_asked_in(
        rows: list[tuple[bytes | None, str | None]], nested: bool, group: int, batch: int,
        compression: str, dictionary: bool, page: str, data: st.DataObject) -> None:
    cells, names = [cell for cell, _ in rows], [name for _, name in rows]
    if nested:
        columns = {"picture": pa.array([{"bytes": cell, "path": name} for cell, name in rows],
                                       HUGGINGFACE)}
    else:
        columns = {"name": pa.array(names, pa.string()), "picture": pa.array(cells, pa.binary())}
    with tempfile.TemporaryDirectory() as folder:
        found, record = scanned(write(
            Path(folder, "a.parquet"), columns, row_group_size=group, write_batch_size=batch,
            data_page_size=1, compression=compression, use_dictionary=dictionary,
            data_page_version=page, write_page_checksum=True))
        order = data.draw(st.permutations(range(len(rows))))
        contents = list(fetch([found[i] for i in order]))
    assert (record.kind, record.members, record.status) == ("parquet", len(rows), "complete")
    assert [member.ordinal for member in found] == list(range(len(rows)))
    width = len(str(max(0, len(rows) - 1)))
    assert [member.raw_name.decode() for member in found] == [
        name or f"{i:0{width}d}" for i, name in enumerate(names)]
    assert len({member.image_id for member in found}) == len(found)
    for i, content in zip(order, contents, strict=True):
        if cells[i] is None:
            assert isinstance(content, ImageError) and content.reason == Reason.EMPTY
        else:
            assert content == cells[i]


@pytest.mark.parametrize(("fields", "image", "name"), [
    ({"anything": pa.binary(), "label": pa.int64()}, "anything", None),
    ({"content": pa.binary(), "key": pa.int64()}, "content", "key"),
    ({"a": pa.binary(), "jpg": pa.binary(), "Path": pa.string()}, "jpg", "Path"),
    ({"image": HUGGINGFACE, "label": pa.int64()}, "image.bytes", "image.path"),
    ({"image": HUGGINGFACE, "mask": HUGGINGFACE, "filename": pa.string()}, "image.bytes",
     "filename"),
    ({"photo": pa.struct([("bytes", pa.binary())])}, "photo.bytes", None),
    ({"content": pa.binary(), "key": pa.binary()}, "content", "key"),
    ({"image": pa.binary(), "id": pa.binary(16), "name": pa.float64()}, "image", None),
    ({"file_name": pa.string(), "path": pa.string(), "a.b": pa.binary()}, "a.b", "path"),
])
def test_the_columns_of_images_and_names_are_found(fields: dict[str, pa.DataType], image: str,
                                                   name: str | None) -> None:
    found, names = find_columns(pa.schema(list(fields.items())))
    assert (found.path, names and names.path) == (image, name)


@pytest.mark.parametrize(("fields", "count"), [
    ([("path", pa.string()), ("label", pa.int64())], 0),
    ([("image", pa.string())], 0),
    ([("image", pa.list_(pa.binary()))], 0),
    ([("front", pa.binary()), ("back", pa.binary())], 2),
    ([("image", pa.binary()), ("png", pa.binary())], 2),
    ([("image", pa.binary()), ("image", pa.binary())], 0),
    ([], 0),
])
def test_no_column_or_several_are_refused_with_what_was_expected(
        fields: list[tuple[str, pa.DataType]], count: int) -> None:
    with pytest.raises(UnusableError, match=rf"^{count} columns .*expected one .*jpg") as caught:
        find_columns(pa.schema(fields))
    assert caught.value.status == SourceStatus.SCHEMA


def test_other_writers_files_are_read(tmp_path: Path) -> None:
    cells = images(20)
    frame = polars.DataFrame({"path": [f"{i}.png" for i in range(20)], "image": cells})
    frame.write_parquet(tmp_path / "polars.parquet", row_group_size=7)
    frame.with_columns(polars.struct(bytes="image", path="path").alias("image")).write_parquet(
        tmp_path / "struct.parquet")
    with duckdb.connect() as database:
        database.execute(f"COPY (FROM '{tmp_path}/polars.parquet') TO '{tmp_path}/duck.parquet'")
    for name in ("polars", "struct", "duck"):
        found, record = scanned(str(tmp_path / f"{name}.parquet"))
        assert record.status == SourceStatus.COMPLETE and list(fetch(found)) == cells
        assert [m.name for m in found] == [f"{i}.png" for i in range(20)]


def test_a_name_need_be_neither_short_nor_utf8(tmp_path: Path) -> None:
    names = pa.array([b"\xff.png", b"n" * 70_000, b"n" * 60_000, b""], pa.binary())
    found, record = scanned(write(tmp_path / "a.parquet", {"image": images(4), "name": names}))
    assert [m.raw_name for m in found] == [b"\xff.png", b"1", b"n" * 60_000, b"3"]
    assert [m.reject_reason for m in found] == [None, Reason.TOO_LARGE, None, None]
    assert record.status == SourceStatus.COMPLETE and reasons(found)[1] == Reason.TOO_LARGE


# -- what is read, and how much is held


def test_listing_reads_no_image_and_fetching_nothing_else(tmp_path: Path, reads: Reads) -> None:
    cells = images(64, 100_000)
    path = write(tmp_path / "a.parquet",
                 {"notes": images(64, 100_000), "image": cells, "path": [f"{i}" for i in range(64)],
                  "more": [os.urandom(100_000).hex() for _ in range(64)]},
                 row_group_size=16, use_dictionary=False)
    found, _ = scanned(path)
    assert reads.take() < 100_000
    assert list(fetch(found[20:30])) == cells[20:30]
    assert 10 * 100_000 < reads.take() < 17 * 100_000  # of row group 1 alone
    assert list(fetch(found)) == cells
    assert reads.take() < 65 * 100_000


def test_spans_add_up_to_the_file(tmp_path: Path) -> None:
    for compression, cells in (("none", images(50)), ("zstd", [bytes(100_000)] * 50)):
        path = write(tmp_path / "a.parquet", {"image": cells}, row_group_size=20,
                     compression=compression, use_dictionary=False)
        found, record = scanned(path)
        assert sum(m.size for m in found) == pytest.approx(sum(map(len, cells)), rel=0.2)
        assert sum(m.span for m in found) <= 1.05 * 3 * record.bytes


def test_shard_after_shard_reads_a_large_row_group_once(tmp_path: Path, reads: Reads,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "READ_BYTES", 10_000)
    cells = images(200, 10_000)
    found, _ = scanned(write(tmp_path / "a.parquet", {"image": cells}, write_batch_size=1,
                             data_page_size=1, use_dictionary=False))
    reads.take()
    for start in range(0, 200, 10):
        assert list(fetch(found[start:start + 10])) == cells[start:start + 10]
    assert reads.take() < 1.5 * 2_000_000


@pytest.mark.parametrize(("cells", "options"), [
    (images(300, 100_000), {"write_batch_size": 1, "data_page_size": 1, "use_dictionary": False}),
    (images(1, 1_000_000) * 60, {}),  # one entry of a dictionary
], ids=["distinct", "equal"])
def test_one_row_group_of_any_size_costs_the_memory_of_its_pages(
        tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, cells: list[bytes],
        options: dict[str, Any]) -> None:
    monkeypatch.setattr(parquet, "READ_BYTES", 100_000)
    found, _ = scanned(write(tmp_path / "a.parquet", {"image": cells}, **options))
    before = pa.total_allocated_bytes()
    for content, cell in zip(fetch(found), cells, strict=True):
        assert content == cell
        assert pa.total_allocated_bytes() - before < 5_000_000
    assert pa.total_allocated_bytes() - before < 200_000
    assert max(length for _, length in reads.calls) < 1.01 * len(cells[0])


def test_rows_out_of_order_are_held_up_to_a_limit(tmp_path: Path, reads: Reads,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    cells = images(60, 10_000)
    found, _ = scanned(write(tmp_path / "a.parquet", {"image": cells}, use_dictionary=False))
    reads.take()
    assert list(fetch(found[::-1])) == cells[::-1]
    assert reads.take() < 700_000
    monkeypatch.setattr(fetching, "HELD_BYTES", 10 * 10_100)
    assert list(fetch(found[::-1])) == cells[::-1]
    assert 3_000_000 < reads.take() < 4_200_000  # six times


# -- hostile and damaged files


class Pickled(pa.ExtensionType):
    """An extension type whose description is a pickle, as Ray's once were; loaded, it sings."""

    song: ClassVar[str]

    def __init__(self) -> None:
        super().__init__(pa.binary(), "igd.tests.pickled")

    def __reduce__(self) -> Any:
        return os.makedirs, (self.song,)

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(self)

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Pickled:
        pickle.loads(serialized)
        return cls()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(Pickled, "song", str(tmp_path / "song"), raising=False)
    pa.register_extension_type(Pickled())
    yield tmp_path / "song"
    pa.unregister_extension_type("igd.tests.pickled")


def test_an_extension_type_is_never_unpickled(tmp_path: Path, canary: Path) -> None:
    cells = images(3)
    path = write(tmp_path / "a.parquet", {
        "image": pa.ExtensionArray.from_storage(Pickled(), pa.array(cells, pa.binary())),
        "name": pa.array(["a", "b", "c"])})
    canary.rmdir() if canary.exists() else None
    found, _ = scanned(path)
    assert list(fetch(found)) == cells and [m.name for m in found] == ["a", "b", "c"]
    assert not canary.exists()
    pq.ParquetFile(path).close()
    assert canary.exists()


def test_a_cell_or_a_page_over_the_limit_is_rejected(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [b"x" * 1001, b"y" * 1000, os.urandom(200_000), b"z"]
    found, _ = scanned(write(tmp_path / "a.parquet", {"image": cells}, row_group_size=2))
    monkeypatch.setattr(parquet, "MAX_MEMBER_BYTES", 1000)
    assert reasons(found) == [Reason.TOO_LARGE, None, Reason.TOO_LARGE, None]
    fetching._idle.clear()
    monkeypatch.setattr(parquet, "READ_BYTES", 1000)
    monkeypatch.setattr(parquet, "MAX_PAGE_BYTES", 150_000)
    assert reasons(found) == [Reason.TOO_LARGE, None, Reason.TOO_LARGE, Reason.TOO_LARGE]
    assert "write_batch_size" in str(list(fetch(found))[3])


@pytest.mark.parametrize(("change", "status"), [
    (lambda data: data[:-1], SourceStatus.TRUNCATED),
    (lambda data: data[:len(data) // 2], SourceStatus.TRUNCATED),
    (lambda data: data[:11], SourceStatus.TRUNCATED),
    (lambda data: data[:4], SourceStatus.DAMAGED),
    (lambda data: b"<html>502</html>", SourceStatus.DAMAGED),
    (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", SourceStatus.DAMAGED),
    (lambda data: data[:-40] + data[-8:], SourceStatus.DAMAGED),
])
def test_a_file_without_a_readable_footer_ends_with_a_status(tmp_path: Path, change: Any,
                                                             status: SourceStatus) -> None:
    path = Path(write(tmp_path / "a.parquet", {"image": images(20), "path": ["n"] * 20}))
    path.write_bytes(change(path.read_bytes()))
    found, record = scanned(str(path))
    assert (found, record.status) == ([], status) and record.detail


def test_other_columns_than_images_end_with_a_status(tmp_path: Path) -> None:
    found, record = scanned(write(tmp_path / "a.parquet", {"path": ["a"], "label": [1]}))
    assert (found, record.status) == ([], SourceStatus.SCHEMA)
    assert "path (string), label (int64)" in (record.detail or "")


def test_rows_are_routed_by_their_own_cell_whichever_are_picked(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"path": ["a", "x", "b", "c"], "image": [b"1"] * 4,
                                         "product": ["A", "X", "B", "C"]}, row_group_size=3)
    picker = Picker(selection(exclude=["x"], limit=2))
    routes = [(route, member.name) for route, member in scan(
        uri, lambda record: None, picker=picker, column="product")]
    assert routes == [("A", "a"), ("B", "b")]


def test_more_rows_than_bytes_are_a_lie(tmp_path: Path) -> None:
    found, record = scanned(write(tmp_path / "a.parquet",
                                  {"image": pa.nulls(1_000_000, pa.binary())}))
    assert (found, record.status) == ([], SourceStatus.DAMAGED)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_bytes_do_more_than_reject(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(write(Path(folder, "a.parquet"), {
            "path": [f"{i}" for i in range(9)], "image": [bytes([i]) * 90 for i in range(9)]},
            row_group_size=4))
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(4, len(whole) - 1))
            whole[at] = data.draw(st.sampled_from([0, 1, 0x15, 0x7F, 0x80, 0xFF]))
        path.write_bytes(bytes(whole))
        found, record = scanned(str(path))
        assert len(list(fetch(found))) == len(found) and record.status in set(SourceStatus)


def damage(path: str, cell: bytes) -> None:
    """Overwrites what lies before a page's first cell: the page's header and the cell's length."""
    data, metadata = Path(path).read_bytes(), pq.read_metadata(path)
    end = data.index(cell)
    start = max(at for group in range(metadata.num_row_groups)
                if (at := metadata.row_group(group).column(0).data_page_offset) < end)
    Path(path).write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    cells = images(30)
    path = write(tmp_path / "a.parquet", {"image": cells}, row_group_size=10, compression="none",
                 use_dictionary=False)
    damage(path, cells[10])
    found, record = scanned(path)
    contents = list(fetch(found))
    assert contents[:10] == cells[:10] and contents[20:] == cells[20:]
    assert {c.reason for c in contents[10:20] if isinstance(c, ImageError)} == {Reason.CORRUPT}
    assert record.status == SourceStatus.COMPLETE


def test_a_flipped_bit_is_found_where_the_page_has_a_checksum(tmp_path: Path) -> None:
    cells = images(30)
    path = Path(write(tmp_path / "a.parquet", {"image": cells}, row_group_size=10,
                      compression="none", use_dictionary=False, write_page_checksum=True,
                      write_statistics=False))  # which repeat the least and the largest image
    whole = path.read_bytes()
    at = whole.index(cells[15]) + 500
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert reasons(scanned(str(path))[0]) == [None] * 10 + [Reason.CORRUPT] * 10 + [None] * 10


def test_rows_whose_names_are_damaged_are_counted_and_rejected(tmp_path: Path) -> None:
    cells = images(30)
    path = write(tmp_path / "a.parquet", {
        "image": cells, "path": [f"name-{i}" for i in range(30)]}, row_group_size=10,
        compression="none", use_dictionary=False)
    damage(path, b"name-10")
    found, record = scanned(path)
    assert record.status == SourceStatus.DAMAGED and "row group 1" in (record.detail or "")
    assert reasons(found) == [None] * 10 + [Reason.CORRUPT] * 10 + [None] * 10
    assert [m.name for m in found[9:12]] == ["name-9", "10", "11"]


class Kms(encryption.KmsClient):
    """Keys wrapped in base64, for tests."""

    def wrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("plain_footer", [False, True])
def test_an_encrypted_file_ends_with_a_status(tmp_path: Path, plain_footer: bool) -> None:
    table = pa.table({"image": images(5), "path": ["a"] * 5})
    properties = encryption.CryptoFactory(lambda _: Kms()).file_encryption_properties(
        encryption.KmsConnectionConfig(), encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["image"]}, plaintext_footer=plain_footer))
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema,
                          encryption_properties=properties) as writer:
        writer.write_table(table)
    found, record = scanned(str(tmp_path / "a.parquet"))
    assert (found, record.status) == ([], SourceStatus.ENCRYPTED)
    assert "encrypted" in (record.detail or "")


# -- changes and outages


def test_a_file_replaced_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path, cells = tmp_path / "a.parquet", images(20)
    found, _ = scanned(write(path, {"image": cells}))
    assert list(fetch(found)) == cells
    write(path, {"image": images(21)})
    assert reasons(found) == [Reason.CHANGED] * 20
    path.unlink()
    assert reasons(found) == [Reason.VANISHED] * 20


def test_a_file_replaced_while_it_is_read_is_never_mixed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "READ_BYTES", 1000)
    path, cells = tmp_path / "a.parquet", images(400)
    found, _ = scanned(write(path, {"image": cells}, row_group_size=20, use_dictionary=False))
    reading = fetch(found)
    assert next(reading) == cells[0]
    write(path, {"image": images(400)}, row_group_size=20, use_dictionary=False)
    rest = list(reading)
    assert {c.reason for c in rest if isinstance(c, ImageError)} == {Reason.CHANGED}
    assert all(content == cell for content, cell in zip(rest, cells[1:], strict=True)
               if isinstance(content, bytes))


def test_storage_out_of_reach_says_nothing_about_a_row(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": images(200)}, row_group_size=10)
    found, _ = scanned(path)

    def down(*args: object, **kwargs: object) -> bytes:
        raise StorageError("endpoint down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_range", down)
        for asked in (lambda: list(fetch(found)), lambda: scanned(path)):
            with pytest.raises(StorageError, match="down"):
                asked()
    assert reasons(found) == [None] * 200
