"""A frozen plan and the shards it holds.

The plan names the model versions and is never written again: a dump that grows, or a model that is
promoted, changes the next run and not this one. `igd.pipelines.parts` makes it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from bisect import bisect_right
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd import storage
from igd.data.members import Member, unescape_name
from igd.records import SourceStatus


def odd_sources(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources of a plan that did not list as they should."""
    return [record for record in records if record["status"] != SourceStatus.COMPLETE]


def any_bad(records: list[dict[str, Any]]) -> bool:
    """Whether the operator must see to a source; a missing end marker is only told."""
    fine = (SourceStatus.COMPLETE, SourceStatus.NO_END_MARKER)
    return any(record["status"] not in fine for record in records)


@functools.lru_cache(maxsize=8)
def load_part(run_at: str, number: int) -> dict[str, Any]:
    """A frozen part of a plan; it never changes, so a process reads it once."""
    return dict(json.loads(storage.read_bytes(
        storage.join(run_at, "plan", f"{number:06d}.json"))))


def part_of(plan: dict[str, Any], shard: int) -> int:
    """Which of the parts of a plan holds a shard.

    Args:
        plan: the whole one, or what is known of it so far.
    """
    return bisect_right(plan["parts"], shard, key=lambda part: part["first_shard"]) - 1


def shard_rows(run_at: str, plan: dict[str, Any], shard: int) -> pa.Table:
    """The planned rows of one shard.

    Args:
        plan: the whole one, what is known of it so far, or the part that holds the shard.
    """
    part = plan["parts"][part_of(plan, shard)] if "parts" in plan else plan
    return part_file(run_at, part["file"]).read_row_group(shard - part["first_shard"])


def members_of(rows: pa.Table) -> list[Member]:
    """Planned rows as members again."""
    names = [field.name for field in dataclasses.fields(Member) if field.name != "raw_name"]
    return [Member(raw_name=unescape_name(row["member"]), **{name: row[name] for name in names})
            for row in rows.to_pylist()]


@functools.lru_cache(maxsize=4)
def part_file(run_at: str, name: str) -> pq.ParquetFile:
    """The file of members of one part."""
    return pq.ParquetFile(pa.BufferReader(storage.read_bytes(
        storage.join(run_at, "plan", name))))
