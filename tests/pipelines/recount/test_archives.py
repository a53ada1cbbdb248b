"""Two walks over the same archives: that of a run and that of `verify` name the same images."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import encryption
from tars import tar, tar_of_kinds

from igd import storage
from igd.data.sources import scan
from igd.pipelines.recount import ranged, tars
from igd.pipelines.recount.archives import entries
from igd.pipelines.recount.ranged import UncountableError
from igd.pipelines.recount.tars import Named

BLOCK = 512


def named(path: Path | str) -> list[Named]:
    found = next(entry for entry in storage.list_objects(str(Path(path).parent))
                 if entry.key == Path(path).name)
    return list(entries(found))


def both(data: bytes, name: str) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """Ordinals and names as the planning pass finds them, and as `verify` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        planned = [(m.ordinal, m.raw_name) for _, m in scan(str(path), lambda record: None)]
        return planned, [(n.ordinal, n.name) for n in named(path)]


def header(name: bytes, *, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    block = bytearray(BLOCK)
    at = {"prefix": 345, "more": 482}
    stated = b"%011o\0" % size if 0 <= size < 8**11 else (
        b"\x80" if size > 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    for start, value in [(0, name), (124, stated), (156, kind), (257, b"ustar\x0000"),
                         *((at[key], value) for key, value in fields.items())]:
        block[start:start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(data: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", size=len(data), kind=kind) + padded(data)


GOOD = header(b"good.png", size=5) + padded(b"hello")
END = bytes(2 * BLOCK)

TAR_NAME = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
            max_size=30),
    st.binary(min_size=1, max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"\xff"))),
    st.builds(lambda part, count: "/".join([part] * count), st.text("ab é.", min_size=1,
                                                                    max_size=9),
              st.integers(1, 60)),
).filter(lambda name: bool(name.strip("/")) and not name.startswith("PK"))  # the first is a magic
KIND = st.sampled_from([tarfile.REGTYPE] * 6 + [
    tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.FIFOTYPE, tarfile.CHRTYPE])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members=st.lists(st.tuples(TAR_NAME, st.binary(max_size=1100), KIND), max_size=8))
@example(members=[("same", b"1", b"0"), ("same", b"2", b"0"), ("é/", b"", b"0"),
                  ("é" * 70 + "/", b"", b"\0"), ("a" * 120 + "/", b"", b"\0")])
def test_tars(format: int, members: list[tuple[str, bytes, bytes]]) -> None:
    data, _ = tar_of_kinds(members, format)
    planned, counted = both(data, "dump.tar")
    assert counted == planned


ZIP_NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
                   max_size=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members=st.lists(st.tuples(ZIP_NAME, st.binary(max_size=300)), max_size=8))
@example(members=[("folder/", b""), ("odd/", b"x"), ("é", b""), ("a", b""), ("a", b"1")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips(members: list[tuple[str, bytes]]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    planned, counted = both(out.getvalue(), "dump.zip")
    assert counted == planned and len(planned) == sum(
        bool(data) or not name.endswith("/") for name, data in members)


CELL = st.one_of(st.none(), st.text(max_size=12), st.just(""))
IMAGE_NAMES = st.sampled_from(["image", "Bytes", "blob", "png"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells=st.lists(CELL, max_size=12), image=IMAGE_NAMES, other=st.sampled_from(
    [None, "data", "thumb", "key"]), name=st.sampled_from([None, "path", "Name", "key", "title"]),
    kind=st.sampled_from(["text", "bytes", "number", "dictionary", "float"]),
    is_struct=st.booleans(), has_path=st.booleans(), group=st.integers(1, 5))
def test_parquet_files(cells: list[str | None], image: str, other: str | None, name: str | None,
                       kind: str, is_struct: bool, has_path: bool, group: int) -> None:
    blobs = pa.array([b"x"] * len(cells), pa.binary())
    texts = pa.array(cells, pa.string())
    if is_struct:
        inside = {"bytes": blobs, **({"path": texts} if has_path else {})}
        column = pa.StructArray.from_arrays(list(inside.values()), list(inside))
    else:
        column = blobs
    columns = {image: column, **({other: blobs} if other else {})}
    if name:
        columns[name] = {
            "text": texts, "bytes": texts.cast(pa.binary()), "dictionary":
            texts.dictionary_encode(), "number": pa.array(range(len(cells)), pa.uint16()),
            "float": pa.array([1.5] * len(cells))}[kind]
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=group)
    planned, counted = both(out.getvalue(), "dump.parquet")
    assert counted == planned


class Pickled(pa.ExtensionType):
    """Code that reading a schema would run."""

    ran = False

    def __init__(self) -> None:
        super().__init__(pa.string(), "test.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Pickled:
        cls.ran = True
        return cls()


def test_no_type_that_a_parquet_file_names_is_made(tmp_path: Path) -> None:
    pa.register_extension_type(Pickled())
    try:
        names = pa.ExtensionArray.from_storage(Pickled(), pa.array(["a", "b"]))
        pq.write_table(pa.table({"image": [b"x"] * 2, "path": names}), tmp_path / "a.parquet")
        Pickled.ran = False
        assert [n.name for n in named(tmp_path / "a.parquet")] == [b"a", b"b"]
    finally:
        pa.unregister_extension_type("test.pickled")
    assert not Pickled.ran


def test_encrypted_columns_are_refused_before_arrow_aborts(tmp_path: Path) -> None:
    class Plain(encryption.KmsClient):
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return base64.b64encode(key_bytes)

    factory = encryption.CryptoFactory(lambda config: Plain())
    keys = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(), encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["image"]}, plaintext_footer=True))
    table = pa.table({"image": [b"x"], "path": ["a"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema,
                          encryption_properties=keys) as writer:
        writer.write_table(table)
    with pytest.raises(UncountableError, match="encrypted"):
        named(tmp_path / "a.parquet")


# -- which kind, and packed tars


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".tar":
        return data
    if suffix == ".tar.gz":  # two gzip members, which is one stream
        return gzip.compress(data[:700]) + gzip.compress(data[700:])
    return pa.compress(data[:700], "zstd", asbytes=True) + pa.compress(
        data[700:], "zstd", asbytes=True)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("name", ["dump.tar", "dump.TGZ", "dump.tar.zstd", "dump.zip",
                                  "dump.parquet"])
def test_a_tar_is_read_however_it_is_packed_and_named(tmp_path: Path, suffix: str,
                                                      name: str) -> None:
    members = [("a" * 300, b"1" * 3_000_000), ("b", b""), ("é.png", b"2" * 5000)]
    (tmp_path / name).write_bytes(packed(tar(*members), suffix))
    assert [(n.ordinal, n.name.decode()) for n in named(tmp_path / name)] == [
        (ordinal, member) for ordinal, (member, _) in enumerate(members)]


@pytest.mark.parametrize(("name", "data"), [
    ("zero.tar", b""), ("zero.zip", b""), ("empty.tar", bytes(10_240)), ("no_end.tar", GOOD)])
def test_an_odd_archive_that_is_whole_is_read(name: str, data: bytes) -> None:
    planned, counted = both(data, name)
    assert counted == planned


def test_what_stands_beside_an_image_of_a_sample_need_not_have_a_row(tmp_path: Path) -> None:
    names = ["1.cls", "1.png", "1.seg.png", "1.json", "notes.txt", "d.x/2.txt", "d.x/2.JPEG",
             "2.txt", "3.json", "3.txt", "d/.png", "d/.txt", "4", "4"]
    (tmp_path / "w.tar").write_bytes(tar(*((name, b"x") for name in names)))
    found = named(tmp_path / "w.tar")
    assert [n.ordinal for n in found] == list(range(len(names)))
    assert [n.name.decode() for n in found if n.is_sidecar] == ["1.cls", "1.json", "d.x/2.txt"]


def test_a_sample_that_never_comes_to_an_image_is_not_held(tmp_path: Path) -> None:
    count = tars.MAX_SAMPLE + 10
    (tmp_path / "w.tar").write_bytes(tar(*((f"1.{i}", b"") for i in range(count))))
    found = named(tmp_path / "w.tar")
    assert len(found) == count and all(n.is_sidecar for n in found)


# -- hostile and damaged


def many(record: Callable[[int], bytes]) -> bytes:
    """As many records as fit an extension header."""
    size, records = 0, []
    while size < tars.MAX_EXTENSION_BYTES - 100:
        records.append(record(len(records)))
        size += len(records[-1])
    return b"".join(records)


HOSTILE = {
    "cut in a member": GOOD + header(b"cut", size=2000) + b"x" * 600,
    "cut in a header": GOOD + header(b"cut")[:100],
    "noise": GOOD + bytes(range(256)) * 2 + GOOD + END,
    "2^60 bytes": GOOD + header(b"liar", size=1 << 60) + b"x" * 1500,
    "minus 512 bytes": GOOD + header(b"liar", size=-512) + GOOD + END,
    "minus 512 bytes by pax": GOOD + pax(b"13 size=-512\n") + GOOD + END,
    "minus 2048 bytes of a link's": GOOD + header(b"l", size=-2048, kind=b"L") + GOOD + END,
    "a name of 1 GB": GOOD + header(b"l", size=1 << 30, kind=b"L") + GOOD + END,
    "a pax header of digits": GOOD + pax(b"1" * 1_000_000) + GOOD + END,
    "digits in a value": GOOD + pax(b"1000010 a=" + b"1" * 999_999 + b"\n") + GOOD + END,
    "overlapping keys": GOOD + pax(b"2 " * 500_000 + b"=") + GOOD + END,
    "a pax record of nothing": GOOD + pax(b"0 a=b\n") + GOOD + END,
    "extension after extension": GOOD + header(b"l", kind=b"L") * 5000 + GOOD + END,
    "a sparse map without end": GOOD + header(b"s", kind=b"S", more=b"\1") + b"\1" * 2_000_000,
    "a sparse map in the body": GOOD + pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header(b"s", size=1024) + padded(b"9999999\n" + b"1\n" * 500) + END,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_no_hostile_tar_is_read_for_long_or_passes_for_whole(tmp_path: Path, case: str,
                                                             suffix: str) -> None:
    path = tmp_path / f"dump{suffix}"
    path.write_bytes(packed(HOSTILE[case], suffix))
    began = time.process_time()
    with pytest.raises(UncountableError, match=r"."):
        named(path)
    assert time.process_time() - began < 2


def test_many_global_headers_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    keys = pax(many(lambda i: b"17 k%08d=yyy\n" % i), b"g")
    (tmp_path / "a.tar").write_bytes(keys * 2 + GOOD * 2000 + END)
    began = time.process_time()
    assert len(named(tmp_path / "a.tar")) == 2000
    assert time.process_time() - began < 3


def test_a_packed_tar_that_unpacks_without_end_is_given_up(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "FREE_BYTES", 1 << 20)
    bomb = tar(("a.png", bytes(30 << 20)), ("b.png", b""))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bomb))
    with pytest.raises(UncountableError, match="unpacks to more"):
        named(tmp_path / "a.tgz")
    monkeypatch.setattr(ranged, "FREE_BYTES", 1 << 25)
    assert len(named(tmp_path / "a.tgz")) == 2


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst", "a.zip", "a.parquet", "a.tar"])
def test_an_archive_cut_or_of_something_else_is_refused_with_a_reason(tmp_path: Path,
                                                                      name: str) -> None:
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a", b"x" * 5000)
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"image": [os.urandom(5000)]}), out)
    else:
        out.write(packed(tar(("a", os.urandom(5000)), ("b", b"")), name[1:]))
    whole = out.getvalue()
    for bad in (whole[:len(whole) // 3], b"<html>502</html>" * 99):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(UncountableError, match=r"."):
            named(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_raise_nothing_but_a_reason(data: st.DataObject) -> None:
    rows = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"] * 3, "path": ["a", "b", "c"]}), rows)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a" * 20, b"x" * 20)
    whole = bytearray(data.draw(st.sampled_from([
        tar(("a" * 120, b"1" * 600), ("b", b"2"))[:5120], rows.getvalue(), zipped.getvalue()])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.tar").write_bytes(whole)
        try:
            named(Path(folder, "a.tar"))
        except UncountableError as error:
            assert str(error)


def test_no_more_is_read_at_once_than_an_index_takes(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "MAX_READ_BYTES", 10)
    path = tmp_path / "a"
    path.write_bytes(bytes(20))
    entry = storage.stat(str(path))
    assert entry is not None
    file = ranged.Ranged(entry)
    assert file.read(10) == bytes(10)
    with pytest.raises(ranged.UncountableError, match="11 bytes"):
        ranged.Ranged(entry).read(11)
