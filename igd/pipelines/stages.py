"""What Ray Data runs of a batch run, but for the scoring: shards are read, and written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from igd.pipelines.plan import load_part
from igd.pipelines.shards import read_shard, write_shard

LAP = pa.schema([
    pa.field("shard", pa.int64()), pa.field("rows", pa.int64()), pa.field("bytes", pa.int64()),
    pa.field("rejected", pa.map_(pa.string(), pa.int64())),
    *(pa.field(f"{step}_s", pa.float64()) for step in ("read", "waited", "score", "write"))])


class ShardSource(Datasource):
    """One read task per unfinished shard; it carries the shard's number, not its members.

    Args:
        shards: each with the number of its part of the plan.
    """

    def __init__(self, run_at: str, shards: Sequence[tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run_at, self._shards = run_at, shards

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None,
                       data_context: DataContext | None = None) -> list[ReadTask]:
        return [self._task(*shard) for shard in self._shards]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def _task(self, shard: int, part: int) -> ReadTask:
        run_at = self._run_at

        def read() -> list[pa.Table]:
            began = time.time()
            decoded = read_shard(run_at, load_part(run_at, part), shard)
            return [with_columns(decoded, read_s=time.time() - began, read_at=time.time())]

        return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None,
                                            exec_stats=None))


class WriteTask:
    """Writes a shard and passes on what became of it and what it took."""

    def __init__(self, run_at: str, plan: dict[str, Any]) -> None:
        self._run_at = run_at
        self._plan = {name: plan[name] for name in ("run_id", "date", "out")}

    def __call__(self, scored: pa.Table) -> pa.Table:
        began = time.time()
        record = write_shard(self._run_at, self._plan, scored)
        took = {name: scored[name][0].as_py() for name in ("read_s", "waited_s", "score_s")}
        return pa.Table.from_pylist([{
            "shard": record["shard"], "rows": record["rows"],
            "bytes": pc.sum(scored["bytes"]).as_py() or 0,
            "rejected": list(record["rejected"].items()), **took,
            "write_s": time.time() - began}], schema=LAP)


def with_columns(table: pa.Table, **columns: float) -> pa.Table:
    """A table with columns of one value each."""
    for name, value in columns.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), len(table)))
    return table
