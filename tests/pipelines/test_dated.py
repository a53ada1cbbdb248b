"""What a source's place becomes on a date."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.errors import ConfigError
from igd.pipelines.dated import dated

DAY = date(2026, 1, 2)


@pytest.mark.parametrize(("source", "place"), [
    ("s3://dumps/{date}", "s3://dumps/2026-01-02"),
    ("/in/{date:%Y/%m/%d}/{date}.tar", "/in/2026/01/02/2026-01-02.tar"),
    ("{date:day %j of %Y, 100%%}", "day 002 of 2026, 100%"),
    ("{date:%G-W%V-%u}", "2026-W01-5"),
    ("{category}/{dates}/{ date }/{}/{Date}", "{category}/{dates}/{ date }/{}/{Date}"),
])
def test_a_date_stands_in_its_place_and_all_else_stays(source, place) -> None:
    assert dated([source, "s3://other"], DAY) == [place, "s3://other"]


@given(st.text(), st.dates(min_value=date(1000, 1, 1)))
def test_a_source_without_a_date_is_the_same_on_any(source, day) -> None:
    assert "{date" in source or dated([source], day) == dated([source], None) == [source]


@pytest.mark.parametrize("form", ["{date:}", "{date:Y/m}", "{date:%H}", "{date:%Q}", "{date:%Y%}"])
def test_a_form_that_no_date_has_is_refused(form) -> None:
    with pytest.raises(ConfigError, match=r"source 's3://a/\{date:.*: \{date:.* is no form of a"):
        dated([f"s3://a/{form}"], DAY)


def test_a_place_for_a_date_asks_for_one() -> None:
    with pytest.raises(ConfigError, match=r"'s3://a/\{date:%Y\}' needs --date"):
        dated(["s3://b", "s3://a/{date:%Y}"], None)
