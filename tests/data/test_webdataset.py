"""Samples of WebDatasets: images are members, what is beside them is counted and left alone."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import tar

from igd.data.fetch import fetch
from igd.data.members import ArchiveEnd, Member
from igd.data.sources import SourceRecord, scan
from igd.data.webdataset import MAX_HELD, MAX_JSON_BYTES, samples
from igd.records import Reason, SourceStatus

JSON = json.dumps({"product": "weave", "line": 7, "ok": True, "share": 0.5, "tags": ["a"]}).encode()


def member(ordinal: int, name: bytes, body: bytes = b"", reason: str | None = None) -> Member:
    return Member(source_uri="a.tar", source_version="v", ordinal=ordinal, raw_name=name,
                  kind="tar", span=len(body), size=len(body), reject_reason=reason)


def given_as(*names: bytes, field: str | None = None, body: bytes = JSON
             ) -> tuple[list[tuple[bytes, str]], dict[str, int]]:
    end = ArchiveEnd()
    walked = ((member(i, name, body), body) for i, name in enumerate(names))
    found = [(m.raw_name, category) for m, category in samples(walked, end, field)]
    return found, end.sidecars


def names(*given: bytes) -> list[bytes]:
    return [name for name, _ in given_as(*given)[0]]


# -- what is a member


@pytest.mark.parametrize(("given", "kept"), [
    ([b"1.png", b"1.json", b"1.cls"], [b"1.png"]),
    ([b"1.json", b"1.cls", b"1.png", b"1.txt"], [b"1.png"]),
    ([b"1.left.png", b"1.json", b"1.right.JPG"], [b"1.left.png", b"1.right.JPG"]),
    ([b"1.pkl", b"1.pth", b"1.npy", b"1.webp"], [b"1.webp"]),
    ([b"notes.txt", b"1.png"], [b"notes.txt", b"1.png"]),
    ([b"1.txt", b"1.cls"], [b"1.txt", b"1.cls"]),
    ([b"1.png", b"2.txt", b"1.txt"], [b"1.png", b"2.txt", b"1.txt"]),  # neighbours only
    ([b"a/1.png", b"b/1.txt"], [b"a/1.png", b"b/1.txt"]),
    ([b"a.b/1.png", b"a.b/2.txt"], [b"a.b/1.png", b"a.b/2.txt"]),
    ([b"1.png", b"1"], [b"1.png", b"1"]),
    ([b".png", b".txt"], [b".png", b".txt"]),
    ([b"a/.1.png", b"a/.1.txt"], [b"a/.1.png", b"a/.1.txt"]),
    ([b"1.png", b"1.png", b"1.txt"], [b"1.png", b"1.png"]),
    ([b"1.png", b"1.avif", b"1.dcm", b"1.tiff"], [b"1.png", b"1.avif", b"1.dcm", b"1.tiff"]),
    ([b"\xff.png", b"\xff.txt"], [b"\xff.png"]),
])
def test_what_stands_beside_an_image_is_no_member(given: list[bytes], kept: list[bytes]) -> None:
    assert names(*given) == kept


def test_an_archive_beside_an_image_is_still_counted() -> None:
    end = ArchiveEnd()
    walked = [(member(0, b"1.png"), b""), (member(1, b"1.zip", reason=Reason.NESTED), b"")]
    assert len(list(samples(walked, end))) == 2 and end.sidecars == {}


@given(st.lists(st.sampled_from([b"1.png", b"1.txt", b"1.json", b"2.txt", b"2.jpg", b"3"]),
                max_size=12))
def test_it_agrees_with_whole_samples(given: list[bytes]) -> None:
    kept = []
    for _, run in groupby(enumerate(given), key=lambda at: at[1].split(b".")[0]):
        run = list(run)
        has_image = any(name.endswith((b".png", b".jpg")) for _, name in run)
        kept += [i for i, name in run if name == b"3" or not has_image
                 or name.endswith((b".png", b".jpg"))]
    walked = [(member(i, name), b"") for i, name in enumerate(given)]
    end = ArchiveEnd()
    found = [m for m, _ in samples(walked, end)]
    assert [m.ordinal for m in found] == kept
    assert sum(end.sidecars.values()) == len(given) - len(kept)


def test_a_sample_is_held_no_longer_than_a_number_of_members() -> None:
    taken = 0

    def endless() -> Iterator[tuple[Member, bytes]]:
        nonlocal taken
        while True:
            yield member(taken, b"1.%d" % taken), b""
            taken += 1

    walking = samples(endless(), ArchiveEnd())
    assert [next(walking)[0].ordinal for _ in range(1000)] == list(range(1000)) and taken < 1001
    texts = [b"1.%d" % i for i in range(MAX_HELD)]
    assert names(*texts, b"1.png", b"1.txt") == [*texts, b"1.png"]
    assert names(*texts[1:], b"1.png", b"1.txt") == [b"1.png"]


# -- the category of a sample


@pytest.mark.parametrize(("given", "field", "routes"), [
    ([b"1.png", b"1.json"], "product", {b"1.png": "weave"}),
    ([b"1.json", b"1.png"], "product", {b"1.png": "weave"}),
    ([b"1.l.png", b"1.JSON", b"1.r.png"], "line", {b"1.l.png": "7", b"1.r.png": "7"}),
    ([b"1.png", b"2.png", b"2.json"], "product", {b"1.png": "", b"2.png": "weave"}),
    ([b"1.png", b"1.meta.json"], "product", {b"1.png": ""}),
    ([b"1.json"], "product", {b"1.json": "weave"}),
    *(([b"1.png", b"1.json"], field, {b"1.png": ""})
      for field in ("missing", "ok", "share", "tags")),
])
def test_a_field_of_the_json_in_a_sample_is_its_category(
        given: list[bytes], field: str, routes: dict[bytes, str]) -> None:
    assert dict(given_as(*given, field=field)[0]) == routes


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"product"', b"[" * 100_000, b"\xff", b'{"product": null}',
    b'{"product": ' + b"9" * 5000 + b"}", JSON + b" " * MAX_JSON_BYTES])
def test_json_that_says_nothing_gives_no_category(body: bytes) -> None:
    assert given_as(b"1.png", b"1.json", field="product", body=body)[0] == [(b"1.png", "")]


def test_a_category_too_far_behind_an_image_is_not_waited_for() -> None:
    images = [b"1.%d.png" % i for i in range(MAX_HELD)]
    found, _ = given_as(*images, b"1.json", b"1.last.png", field="product")
    assert [category for _, category in found] == [""] * MAX_HELD + ["weave"]
    found, _ = given_as(*images[1:], b"1.json", b"1.last.png", field="product")
    assert {category for _, category in found} == {"weave"}


# -- in archives


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("column", [None, "product"])
def test_a_webdataset_is_its_images_and_its_sidecars_are_told(
        tmp_path: Path, suffix: str, column: str | None) -> None:
    evil = pickle.dumps(Canary())
    whole = tar(("0.png", b"zero"), ("0.pkl", evil), ("0.pt", evil), ("0.json", JSON),
                ("1.json", b'{"product": "washer"}'), ("1.png", b"one"), ("notes.txt", b"hello"))
    path = tmp_path / f"shard.{suffix}"
    path.write_bytes(gzip.compress(whole) if suffix == "tar.gz" else whole)
    records: list[SourceRecord] = []
    found = list(scan(str(path), records.append, column=column))
    routes = ["weave", "washer", ""] if column else ["0.png", "1.png", "notes.txt"]
    assert [route for route, _ in found] == routes
    assert [m.ordinal for _, m in found] == [0, 5, 6]
    assert list(fetch([m for _, m in found])) == [b"zero", b"one", b"hello"]
    record, = records
    assert (record.members, record.status) == (3, SourceStatus.COMPLETE)
    assert record.detail == "4 sidecar members (.json, .pkl, .pt)"


def test_names_of_sidecars_flood_no_record(tmp_path: Path) -> None:
    hostile = [f"{i}.x{i}" for i in range(500)] + ["a.b\x1b[2J", "a." + "n" * 99]
    pairs = [pair for name in hostile for pair in ((name.split(".")[0] + ".png", b""), (name, b""))]
    (tmp_path / "a.tar").write_bytes(tar(*pairs))
    records: list[SourceRecord] = []
    list(scan(str(tmp_path / "a.tar"), records.append))
    detail = records[0].detail or ""
    assert detail.startswith("502 sidecar members") and len(detail) < 200 and detail.isprintable()
