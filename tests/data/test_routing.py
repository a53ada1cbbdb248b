"""Which category a path belongs to."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd.config import NAME_PATTERN
from igd.data.routing import PLACEHOLDER, Routing
from igd.errors import ConfigError


@pytest.mark.parametrize(("pattern", "path", "category"), [
    ("{category}/*", "weave/a.png", "weave"),
    ("{category}/*", "weave/deep/er/a.png", "weave"),
    ("{category}/*", "a.png", None),
    ("*/{category}/*", "2026/07/weave/a.png", "07"),
    ("{category}-*.png", "a-b-c.png", "a-b"),
    ("*/{category}_*.png", "x/weave_1_2.png", "weave_1"),
    ("line*/{category}.png", "line7/sub/weave.png", "weave"),
    ("{category}", "weave", "weave"),
    ("{category}", "weave/a", None),
    ("{category}/*.png", "weave/a.PNG", None),
    ("{category}/*", "_unrouted/a.png", None),
    ("{category}/*", "../a.png", None),
    ("{category}/*", "w e/a.png", None),
    ("{category}/*", "\udcff/a.png", None),
    ("{category}/*", "/weave/a.png", None),
    ("{category}/*", "w\n/a.png", None),
    ("{category}/*", "weave/a\n.png", "weave"),
    ("a.c/{category}/*", "abc/weave/x", None),
])
def test_a_pattern_reads_the_category_from_the_path(
        pattern: str, path: str, category: str | None) -> None:
    assert Routing(pattern=pattern).route(path) == category


def test_a_fixed_category_takes_every_path() -> None:
    assert Routing(category="weave").route("any/\udcff/where") == "weave"


@pytest.mark.parametrize(("cell", "category"), [
    ("weave", "weave"), ("7", "7"), ("", None), ("we/ave", None), ("_unrouted", None)])
def test_a_column_holds_the_category(cell: str, category: str | None) -> None:
    assert Routing(column="product").route(cell) == category


@pytest.mark.parametrize("given", [
    {}, {"category": "a", "pattern": "{category}"}, {"pattern": "*.png"},
    {"category": "a", "column": "b"}, {"pattern": "{category}", "column": "b"},
    {"pattern": "{category}/{category}"}, {"category": "../a"}, {"category": ""}])
def test_what_cannot_route_is_a_configuration_error(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"category"):
        Routing(**given)


@settings(max_examples=600, deadline=None)
@given(st.text("a/x*", max_size=6), st.text("a/x*", max_size=6), st.text("ax/", max_size=12))
def test_it_agrees_with_a_regular_expression(head: str, tail: str, path: str) -> None:
    glob = [".*?".join(re.escape(part) for part in text.split("*")) for text in (head, tail)]
    found = re.fullmatch(f"{glob[0]}([^/]+){glob[1]}", path)
    wanted = found[1] if found and NAME_PATTERN.fullmatch(found[1]) else None
    assert Routing(pattern=head + PLACEHOLDER + tail).route(path) == wanted


@pytest.mark.parametrize("pattern", [
    "*/{category}/*", "*/{category}/*.png", "*x{category}x*x*.png", "*a*a*{category}-*-*-b",
    "*{category}*", "*x{category}", "*x{category}ab*"])
@pytest.mark.parametrize("path", ["x" * 65_536, "a/" * 32_768, "a-/" * 21_845, "xa/x" * 16_384])
def test_no_name_makes_a_pattern_slow(pattern: str, path: str) -> None:
    began = time.process_time()
    Routing(pattern=pattern).route(path)
    assert time.process_time() - began < 0.5
