"""The comparison of `proofs/containers.py` sees one bit of any column, in real Delta tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bits.said import COLUMNS, Row, differing, digest, in_tables
from chaos.places import Place
from containers import RESULT, problems
from deltalake import write_deltalake

from igd.records import HEATMAPS, SCORES

DAY = date(2026, 1, 2)
Rows = list[dict[str, Any]]


def scores() -> Rows:
    return [{"image_id": f"id{n}", "source_uri": "a.tar", "source_version": "v",
             "member": f"MT_Free/Imgs/{n}.jpg", "ordinal": n, "run_id": "r", "generation": 1,
             "status": "scored", "sha256": f"{n}{n}", "width": 9, "height": 8, "score": 0.1 + n,
             "dense_distance": 0.0, "p_value": 0.5, "decision": "normal", "alpha": 0.01,
             "threshold": 2.5, "model_version": "m", "score_fingerprint": "f", "preset": "fast",
             "regions": [{"x0": 1, "y0": 2, "x1": 3, "y1": 4, "area": 5, "peak": 0.5}],
             "schema_version": 1, "scored_at": datetime(2026, 1, 2, tzinfo=UTC), "date": DAY,
             "category": "MT_Free"} for n in range(3)]


def heatmaps() -> Rows:
    return [{"run_id": "r", "image_id": f"id{n}", "heatmap": bytes([n]), "heatmap_min": 0.0,
             "heatmap_max": 1.5, "date": DAY, "category": "MT_Free"} for n in range(3)]


def said(folder: Path, rows: Rows, pictures: Rows) -> list[Row]:
    for name, schema, found in (("scores", SCORES, rows), ("heatmaps", HEATMAPS, pictures)):
        write_deltalake(f"{folder}/{name}", pa.Table.from_pylist(found, schema=schema),
                        partition_by=["date", "category"])
    return in_tables(Place(uri=str(folder), settings={}), DAY.isoformat())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return said(tmp_path_factory.mktemp("whole"), scores(), heatmaps())


@pytest.mark.parametrize("column", [*COLUMNS, "member", "heatmap", "heatmap_min", "heatmap_max"])
def test_the_last_bit_of_any_column_is_seen(whole: list[Row], tmp_path: Path,
                                            column: str) -> None:
    rows, pictures = scores(), heatmaps()
    row, schema = (pictures[1], HEATMAPS) if column in HEATMAPS.names else (rows[1], SCORES)
    row[column] = _nearly(row.get(column), schema.field(column).type)
    assert differing(said(tmp_path, rows, pictures), whole) == {
        "11": [column.replace("member", "name")]}


def _nearly(value: Any, kind: pa.DataType) -> Any:
    """Another value, of numbers the nearest."""
    if pa.types.is_list(kind):
        return [{**value[0], "peak": _nearly(value[0]["peak"], pa.float32())}]
    if pa.types.is_floating(kind):
        if not value:  # of a missing term 0, of 0 the other 0
            return 0.0 if value is None else -0.0
        number = np.float32 if pa.types.is_float32(kind) else np.float64
        return float(np.nextafter(number(value), number(9)))
    if pa.types.is_integer(kind):
        return value + 1
    return value + (b"\0" if pa.types.is_binary(kind) else "x")


@pytest.mark.parametrize(("change", "keys"), [
    (lambda rows: rows.pop(0), {"00"}), (lambda rows: rows.append(rows[2]), {"22"}),
    (lambda rows: rows[0].update(sha256="33"), {"00", "33"})])
def test_what_is_lost_or_doubled_or_made_up_is_seen(
        whole: list[Row], tmp_path: Path, change: Callable[[Rows], object],
        keys: set[str]) -> None:
    rows = scores()
    change(rows)
    bent = said(tmp_path, rows, heatmaps())
    assert differing(bent, whole) == differing(whole, bent) == {key: ["rows"] for key in keys}


def test_a_heatmap_that_stands_twice_differs(whole: list[Row], tmp_path: Path) -> None:
    twice = said(tmp_path, scores(), [*heatmaps(), heatmaps()[1]])
    assert list(differing(twice, whole)) == ["11"]


def test_order_is_of_no_account_and_digests_tell_columns_apart(whole: list[Row]) -> None:
    assert differing(whole[::-1], whole) == {} and digest(whole[::-1]) == digest(whole)
    assert len({digest(whole), digest(whole, "score"), digest(whole, "p_value"),
                digest(whole[1:], "score")}) == 4


@pytest.mark.parametrize("harm", [
    lambda it: it["runs"][3]["differing"]["in process"].update(rows=1),
    lambda it: it["runs"][3]["differing"]["first run"].update(rows=1),
    lambda it: it["runs"][3].update(rejected=1), lambda it: it["runs"][3].update(exit_code=3),
    lambda it: it["runs"][3].update(images=it["images"] - 1),
    lambda it: it["readers"]["s3"]["pandas"].update(score_sum=0.0),
    lambda it: [seen.update(heatmaps=1) for seen in it["readers"]["s3"].values()
                if isinstance(seen, dict)]])
def test_each_harm_is_one_problem(harm: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(RESULT.read_text())
    for place in document["readers"].values():  # as they are before they are written
        for seen in place.values():
            if isinstance(seen, dict):
                seen["heatmap_sizes"] = [tuple(size) for size in seen["heatmap_sizes"]]
    assert list(problems(document)) == []
    harmed = copy.deepcopy(document)
    harm(harmed)
    assert len(list(problems(harmed))) == 1
