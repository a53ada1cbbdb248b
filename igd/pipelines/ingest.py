"""Decoding the images of one training over a whole cluster, with Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from igd.config import ImageConfig
from igd.data.datasets import Prepared, read_prepared
from igd.data.trees import ImageRef
from igd.errors import ImageError, StorageError
from igd.pipelines.cluster import own_error, quiet_data

BLOCK_BYTES = 16 << 20
"""Decoded images of a block, on their way from a reader to the training."""
MOST_READERS = 32
"""One process takes their blocks, and no more than that."""
READ_CPUS = 0
"""The training that waits for its images holds CPUs that it does not use; readers that asked for
others would wait for ever where trainings hold them all."""
ROWS = pa.schema([("number", pa.int64()), ("pixels", pa.binary()), ("width", pa.int32()),
                  ("height", pa.int32()), ("sha256", pa.string()), ("reason", pa.string()),
                  ("detail", pa.string())])


def stream_prepared(refs: Sequence[ImageRef],
                    config: ImageConfig) -> Iterator[tuple[int, Prepared | ImageError]]:
    """A `Read` by tasks all over the cluster, in the order in which they are done.

    Blocks wait in the object store for this process, and readers for blocks to be taken.

    Raises:
        StorageError: the cluster failed.
    """
    quiet_data()
    source = ImageSource(refs, config)
    readers = 1 + int(ray.available_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    try:
        dataset = ray.data.read_datasource(
            source, override_num_blocks=source.blocks, num_cpus=READ_CPUS,
            concurrency=min(readers, MOST_READERS, source.blocks))
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow",
                                          prefetch_batches=0):
            for row in block.to_pylist():
                yield row["number"], _found(row, config)
    except RayError as error:
        raise own_error(error) or StorageError(
            f"the cluster failed while reading images: {str(error).splitlines()[0]}") from error


class ImageSource(Datasource):
    """One read task per block of images; it carries where they are."""

    def __init__(self, refs: Sequence[ImageRef], config: ImageConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refs, self._config = refs, config
        self._rows = max(1, BLOCK_BYTES // (3 * config.size ** 2))

    @property
    def blocks(self) -> int:
        return -(-len(self._refs) // self._rows)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None,
                       data_context: DataContext | None = None) -> list[ReadTask]:
        return [self._task(first) for first in range(0, len(self._refs), self._rows)]

    def estimate_inmemory_data_size(self) -> int | None:
        return 3 * self._config.size ** 2 * len(self._refs)

    def _task(self, first: int) -> ReadTask:
        refs, config = self._refs[first:first + self._rows], self._config

        def read() -> list[pa.Table]:
            rows = [_row(first + number, found) for number, found in read_prepared(refs, config)]
            return [pa.Table.from_pylist(rows, schema=ROWS)]

        return ReadTask(read, BlockMetadata(
            num_rows=len(refs), size_bytes=3 * config.size ** 2 * len(refs), input_files=None,
            exec_stats=None))


def _row(number: int, found: Prepared | ImageError) -> dict[str, Any]:
    if isinstance(found, ImageError):
        return {"number": number, "reason": found.reason, "detail": found.detail}
    width, height = found.source_size
    return {"number": number, "pixels": found.image_HWC.tobytes(), "width": width,
            "height": height, "sha256": found.sha256}


def _found(row: dict[str, Any], config: ImageConfig) -> Prepared | ImageError:
    if row["pixels"] is None:
        return ImageError(row["reason"], row["detail"])
    image_HWC = np.frombuffer(row["pixels"], np.uint8).reshape(config.size, config.size, 3)
    return Prepared(image_HWC, (row["width"], row["height"]), row["sha256"])
