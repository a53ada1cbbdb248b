"""Sources with wildcards: what a shell would match, and nothing twice."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from glob import glob as shell
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import tar

from igd import storage
from igd.data.globs import MAGIC, Glob, glob_of, overlap
from igd.data.sources import check_source, list_inputs, scan
from igd.errors import DataError

FILES = ("2026-11-01/cam1.tar", "2026-11-01/cam2.tar", "2026-11-01/cam10.tar",
         "2026-11-02/cam1.tar", "2026-11-02/deep/er/x.png", "2025-12-31/cam1.tar", "top.png",
         "2026-11-02/.hidden.png")


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    for name in FILES:
        data = tar((name + ".png", b"x")) if name.endswith(".tar") else b"x"
        storage.write_bytes(storage.join(place, "dumps", name), data)
    return f"{place}/dumps"


def keys(uri: str) -> list[str]:
    return [entry.key for entry in list_inputs(uri)]


@pytest.mark.parametrize(("pattern", "found"), [
    ("2026-*/cam?.tar", [FILES[0], FILES[1], FILES[3]]),
    ("2026-11-0[!1]/cam*", [FILES[3]]),
    ("*/cam1.tar", [FILES[5], FILES[0], FILES[3]]),
    ("2026-11-0?/deep", [FILES[4]]),
    ("2026-11-0?/deep/er/x.png", [FILES[4]]),
    ("**/x.png", [FILES[4]]),
    ("**/er/**/x.png", [FILES[4]]),
    ("2025-*", [FILES[5]]),
    ("*.png", [FILES[6]]),
    ("**/*.png", [FILES[7], FILES[4], FILES[6]]),
    ("[2t]*/**", [FILES[5], FILES[0], FILES[2], FILES[1], FILES[7], FILES[3], FILES[4]]),
])
def test_a_pattern_is_the_objects_it_matches(root: str, pattern: str, found: list[str]) -> None:
    assert keys(f"{root}/{pattern}") == found
    check_source(f"{root}/{pattern}")


def test_keys_are_relative_to_what_is_fixed(root: str) -> None:
    assert keys(f"{root}/2026-11-02/deep/*/x.png") == ["er/x.png"]
    found = [(path, m.source_uri) for path, m in scan(f"{root}/2026-11-02/*", print)]
    assert [path for path, _ in found] == [".hidden.png", "2026-11-02/cam1.tar.png",
                                           "deep/er/x.png"]
    assert found[2][1] == storage.canonical(f"{root}/2026-11-02/deep/er/x.png")


def test_only_folders_that_may_match_are_listed(root: str, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    listed: list[str] = []
    list_objects = storage.list_objects

    def noted(uri: str) -> Iterator[storage.Entry]:
        listed.append(uri)
        return list_objects(uri)

    monkeypatch.setattr(storage, "list_objects", noted)
    assert len(keys(f"{root}/2026-11-02/d*/er/*.png")) == 1
    assert [uri.removeprefix(storage.canonical(root)) for uri in listed] == ["/2026-11-02/deep/er"]


def test_a_pattern_that_matches_nothing_is_named(root: str) -> None:
    for pattern in ("2027-*/cam?.tar", "**/*.jpg", "*/nothing", "nothing/*"):
        with pytest.raises(DataError, match="matches nothing") as raised:
            check_source(storage.canonical(f"{root}/{pattern}"))
        assert f"{root}/{pattern}" in str(raised.value)


def test_what_is_there_literally_is_no_pattern(root: str) -> None:
    storage.write_bytes(f"{root}/cam[1].png", b"x")
    storage.write_bytes(f"{root}/cam1.png", b"x")
    storage.write_bytes(f"{root}/odd[2]/y.png", b"x")
    assert keys(f"{root}/cam[1].png") == ["cam[1].png"]
    assert keys(f"{root}/odd[2]") == ["y.png"]
    assert keys(f"{root}/odd[[]2[]]/*") == ["odd[2]/y.png"]


# -- against the standard library

PART = st.sampled_from(["a", "ab", "b", "b.png", "a1"])
WILD = st.lists(st.sampled_from(["a", "a*", "*", "?", "[ab]", "[!a]*", "**", "*.png"]),
                min_size=1, max_size=4).filter(lambda parts: not MAGIC.isdisjoint("".join(parts)))


@settings(max_examples=80, deadline=None)
@given(files=st.lists(st.lists(PART, min_size=1, max_size=4), max_size=8), parts=WILD)
def test_it_matches_what_glob_does(files: list[list[str]], parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            path = Path(folder, *file)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            except OSError:  # a file where a folder would be, or the other way round
                continue
        wanted = set()
        for match in shell(os.path.join(folder, *parts), recursive=True):
            inside = [match] if os.path.isfile(match) else shell(match + "/**", recursive=True)
            wanted |= {os.path.realpath(path) for path in inside if os.path.isfile(path)}
        pattern = glob_of(os.path.join(folder, *parts))
        found = list(pattern.entries()) if pattern else list(list_inputs(
            os.path.join(folder, *parts)))
        assert {os.path.realpath(storage.local_path(entry.uri)) for entry in found} == wanted
        assert len({entry.uri for entry in found}) == len(found)
        for path in Path(folder).rglob("*"):
            if pattern and path.is_file():
                assert pattern.holds(str(path)) == (os.path.realpath(path) in wanted)


def test_many_stars_cost_no_time() -> None:
    hostile = Glob("file:///x", ("**", "a*a*a*a*a*a*b") * 12)
    began = time.process_time()
    assert not hostile.holds("/x/" + "/".join(["a" * 60] * 300))
    assert time.process_time() - began < 2


# -- overlaps


@pytest.mark.parametrize(("one", "other", "certain"), [
    ("a/b", "a", True), ("a", "a/b", False), ("a/*.png", "a", True), ("a/b/*", "a", True),
    ("a/b", "a/*", True), ("a/b/c.png", "a/**/*.png", True), ("a/b.txt", "a/*.png", False),
    ("ab/*", "a", False), ("a", "a/*", False), ("a/*", "a/b*", False), ("a/b", "a*/c", False),
])
def test_a_source_inside_another_is_known_where_it_is_certain(tmp_path: Path, one: str, other: str,
                                                              certain: bool) -> None:
    assert overlap(str(tmp_path / one), str(tmp_path / other)) == certain


def test_what_is_there_literally_overlaps_with_nothing_it_would_match(tmp_path: Path) -> None:
    for name in ("a[1]", "a1"):
        (tmp_path / name).mkdir()
    assert not overlap(str(tmp_path / "a1"), str(tmp_path / "a[1]"))
    (tmp_path / "a[1]").rmdir()
    assert overlap(str(tmp_path / "a1"), str(tmp_path / "a[1]"))


def test_a_place_where_a_pattern_may_match_is_known(tmp_path: Path) -> None:
    pattern = glob_of(str(tmp_path / "**/*.parquet"))
    assert pattern is not None and pattern.may_hold(str(tmp_path / "out"))
    days = glob_of(str(tmp_path / "2026-*/*.tar"))
    assert days is not None and not days.may_hold(str(tmp_path / "out"))
    assert days.may_hold(str(tmp_path / "2026-x"))
