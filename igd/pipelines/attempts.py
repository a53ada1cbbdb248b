"""Attempts at a shard, counted where a dead worker cannot take the count along.

    <run>/attempts/<n>-<uuid>   somebody reads shard n, or died of it

An attempt that ends, well or with an error, takes its mark away. What is left when a shard is
done tells who died, and nobody looks at it again.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

from igd import storage
from igd.errors import StorageError

ATTEMPTS = "attempts"


@contextlib.contextmanager
def attempt(run_at: str, shard: int) -> Iterator[int]:
    """Marks an attempt as begun, for as long as it lasts.

    Yields:
        How many others at this shard have begun and not ended. They died, whoever killed them;
        one that is at it this moment counts among them.
    """
    folder = storage.join(run_at, ATTEMPTS)
    others = sum(entry.key.startswith(f"{shard:08d}-") for entry in storage.list_objects(folder))
    mark = storage.join(folder, f"{shard:08d}-{uuid.uuid4().hex}")
    storage.write_bytes(mark, b"{}\n")
    try:
        yield others
    finally:
        with contextlib.suppress(StorageError):  # then one death too many is counted, no more
            storage.delete(mark)
