"""Row types: what readers of the tables rely on."""

from __future__ import annotations

import pyarrow as pa
import pytest

from igd import records
from igd.config import NAME_PATTERN
from igd.records import TERMS, Decision, Reason, SourceStatus, Status


def test_codes_are_plain_distinct_strings() -> None:
    for codes in (Reason, SourceStatus, Decision, Status):
        assert all(str(code) == code.value == code.name.lower() for code in codes)
        assert pa.array(list(codes), pa.string()).to_pylist() == [code.value for code in codes]


def test_no_column_stands_twice() -> None:
    for schema in (records.SCORES, records.HEATMAPS, records.SOURCES, records.PLAN,
                   records.DECODED, records.CALIBRATION):
        assert len(set(schema.names)) == len(schema.names)


def test_a_row_that_was_not_scored_is_a_row() -> None:
    """A reject has no score, no model and no decision, and yet an identity and a reason."""
    required = {field.name for field in records.SCORES if not field.nullable}
    assert required == {"image_id", "source_uri", "source_version", "member", "ordinal", "run_id",
                        "generation", "status", "schema_version", "scored_at", "date", "category"}


@pytest.mark.parametrize("schema", [records.SCORES, records.CALIBRATION], ids=["scores", "cal"])
def test_every_raw_term_is_a_float64_column_that_may_be_null(schema: pa.Schema) -> None:
    assert len(TERMS) == 8
    assert all(schema.field(term).type == pa.float64() and schema.field(term).nullable
               for term in TERMS)


def test_partition_columns_come_last_and_times_are_utc() -> None:
    assert records.SCORES.names[-2:] == records.HEATMAPS.names[-2:] == list(records.PARTITION_BY)
    assert records.SOURCES.names[-1] == "date"
    assert records.SCORES.field("scored_at").type == pa.timestamp("us", tz="UTC")


def test_a_category_of_unrouted_images_is_no_name_a_model_can_have() -> None:
    assert not NAME_PATTERN.fullmatch(records.UNROUTED)
