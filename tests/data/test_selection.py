"""Which images of a dump are taken."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd.data.routing import matches
from igd.data.selection import EVERYTHING, Picker, selection
from igd.errors import ConfigError


@settings(max_examples=600, deadline=None)
@given(st.text("a/x*", max_size=7), st.text("ax/\n", max_size=12))
def test_a_pattern_agrees_with_a_regular_expression(pattern: str, path: str) -> None:
    wanted = re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), path, re.S)
    assert matches(pattern, path) == (wanted is not None)


def test_everything_but_the_star_stands_for_itself() -> None:
    assert matches("a[b]?/*.png", "a[b]?/c/d.png")
    assert not matches("a[b]?/*.png", "ab1/c.png") and not matches("*.png", "a.PNG")
    assert matches("*\udcff*", "x/\udcff.png")


@pytest.mark.parametrize("path", ["x" * 65_536, "a/" * 32_768, "ab" * 32_768])
def test_no_name_makes_a_pattern_slow(path: str) -> None:
    began = time.process_time()
    matches("*a*b*x*" * 8 + "y", path)
    assert time.process_time() - began < 0.5


def test_an_image_is_wanted_by_one_include_and_no_exclude() -> None:
    chosen = selection(["a/*", "b/*"], ["*/thumbs/*"])
    assert [path for path in ("a/1", "b/2", "c/3", "a/thumbs/1") if chosen.wants(path)] == [
        "a/1", "b/2"]
    assert EVERYTHING.wants("\udcff") and selection(exclude=["a*"]).wants("b")
    assert selection(["b", "a", "b"]) == selection(["a", "b"]) != selection(exclude=["a", "b"])


@pytest.mark.parametrize("bad", [{"include": [""]}, {"exclude": [""]}, {"limit": 0}])
def test_what_cannot_select_is_a_configuration_error(bad: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        selection(**bad)


def test_an_include_that_matches_nothing_is_an_error_and_an_exclude_is_told() -> None:
    def after(paths: str, **chosen) -> list[str]:
        picker = Picker(selection(**chosen))
        for path in paths:
            if not picker.full:
                picker.take(path)
        return picker.idle_excludes()

    assert after("ab", include=["a", "b"], exclude=["c", "a"]) == ["c"]
    with pytest.raises(ConfigError, match="'z' matches none of 2 paths, such as 'b'"):
        after("ab", include=["a", "z"])
    assert after("", include=["z"], exclude=["y"]) == []  # nothing was there to match
    assert after("ab", include=["a", "z"], limit=1) == []  # z had no turn
