"""Checkpoints of trainings on storage, where a trainer, a task or a process alike take them up.

    <models>/_training/<category>/<fingerprint>/checkpoint.safetensors
    <models>/_training/<category>/trainer-<task>-.../    Ray Train's own state of one attempt

One object a training, replaced as a whole: a reader finds the one before or the new one. Ray
Train's own checkpoints would belong to one trainer, and a reported one waits for every worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

from igd import storage
from igd.errors import ObjectMissingError, StorageError
from igd.train.checkpoint import Snapshot
from igd.train.loop import Progress

FOLDER = "_training"
MOST_OF_TIME = 0.05
"""Share of a training's time that checkpoints may take."""
UNITS = {"distil": "iteration", "em": "epoch"}
EVERY_S = 30.0
"""A checkpoint of the nets at paper width is 0.6 GB; at most this much work is done again."""

Curve = list[tuple[float, Progress]]


def training_folder(models: str, category: str) -> str:
    """Where unfinished trainings of a category keep their state."""
    return storage.join(models, FOLDER, category)


def clear(models: str, category: str, *beginnings: str) -> str | None:
    """Removes what finished trainings have left; what cannot be removed does no harm.

    Args:
        beginnings: of the paths below the category's `training_folder`; other trainings of the
            category keep theirs.

    Returns:
        What went wrong, or None.
    """
    try:
        for entry in list(storage.list_objects(training_folder(models, category))):
            if entry.key.startswith(beginnings):
                storage.delete(entry.uri)
    except StorageError as error:
        return f"checkpoints could not be removed: {error}"
    return None


class StoredCheckpoints:
    """Keeps the latest snapshot, every so often, together with the loss curve so far."""

    def __init__(self, uri: str, curve: Curve, *, every_s: float = EVERY_S,
                 say: Callable[[str], None] = lambda text: None) -> None:
        """
        Args:
            uri: of the one object that is kept.
            curve: filled by the caller while training reports; restored with the snapshot.
            every_s: seconds between two snapshots, at least; 0 keeps all that are offered.
            say: told where training goes on, or that a checkpoint cannot be read.
        """
        self.uri, self.curve, self.every_s, self.say = uri, curve, every_s, say
        self._next_at = time.monotonic() + every_s

    def last(self) -> Snapshot | None:
        try:
            data = storage.read_bytes(self.uri)
        except ObjectMissingError:
            return None
        try:
            about = _header(data)
            snapshot = Snapshot(branch=about["branch"], phase=about["phase"], done=about["done"],
                                tensors=safetensors.torch.load(data))
            curve = [(at_s, Progress(**step)) for at_s, step in about["curve"]]
        except Exception as error:  # a file that something else has damaged
            self.say(f"checkpoint {self.uri} cannot be read ({type(error).__name__}); starting "
                     "over")
            return None
        self.curve[:] = curve
        threads = torch.get_num_threads()
        self.say(f"going on after {snapshot.branch} {UNITS[snapshot.phase]} {snapshot.done}"
                 + (f", with {threads} threads after {about['threads']}: the last bits will differ"
                    if about["threads"] != threads else ""))
        return snapshot

    def offer(self, take: Callable[[], Snapshot]) -> None:
        began = time.monotonic()
        if began < self._next_at:
            return
        snapshot = take()
        about = {"branch": snapshot.branch, "phase": snapshot.phase, "done": snapshot.done,
                 "threads": torch.get_num_threads(),
                 "curve": [[at_s, vars(step)] for at_s, step in self.curve]}
        try:
            storage.write_bytes(self.uri, safetensors.torch.save(
                dict(snapshot.tensors), metadata={"igd": json.dumps(about)}))
        except StorageError as error:  # the training itself has what it needs
            self.say(f"no checkpoint could be written ({error}); training goes on")
        if self.every_s > 0:
            now = time.monotonic()
            self._next_at = now + max(self.every_s, (now - began) / MOST_OF_TIME)


def _header(data: bytes) -> dict[str, Any]:
    """What `offer` put beside the tensors (safetensors: 8 bytes of length, then JSON)."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(json.loads(data[8:8 + length])["__metadata__"]["igd"]))
