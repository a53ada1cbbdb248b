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
HOPELESS = 50
"""Deaths at a shard that end its run; a driver that is killed again and again adds to them too."""


@contextlib.contextmanager
def attempt(run_at: str, shard: int) -> Iterator[int]:
    """Marks an attempt as begun, for as long as it lasts.

    Yields:
        How many others at this shard have begun and not ended. They died, whoever killed them;
        one that is at it this moment counts among them.

    Raises:
        StorageError: they are `HOPELESS`; they count no more, so that the run can be taken up.
    """
    folder = storage.join(run_at, ATTEMPTS)
    others = [entry.uri for entry in storage.list_objects(folder)
              if entry.key.startswith(f"{shard:08d}-")]
    if len(others) >= HOPELESS:
        for mark in others:
            storage.delete(mark)
        raise StorageError(f"shard {shard} of {run_at} has cost {len(others)} workers their life; "
                           "see in Ray's logs what they died of (memory?), then run the command "
                           "again, or leave its images out (--exclude)")
    mark = storage.join(folder, f"{shard:08d}-{uuid.uuid4().hex}")
    storage.write_bytes(mark, b"{}\n")
    try:
        yield len(others)
    finally:
        with contextlib.suppress(StorageError):  # then one death too many is counted, no more
            storage.delete(mark)
