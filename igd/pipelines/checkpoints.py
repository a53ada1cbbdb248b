"""Checkpoints of trainings on storage, where a trainer, a task or a process alike take them up.

    <models>/_training/<category>/<fingerprint>/checkpoint.safetensors
    <models>/_training/<category>/trainer-.../       Ray Train's own state of one attempt

One object a training, replaced as a whole: a reader finds the one before or the new one. Ray
Train's own checkpoints would belong to one trainer, and a reported one waits for every worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import safetensors.torch

from igd import storage
from igd.errors import ObjectMissingError
from igd.train.checkpoint import Snapshot
from igd.train.loop import Progress

FOLDER = "_training"
EVERY_S = 30.0
"""A checkpoint of the nets at paper width is 0.6 GB; at most this much work is done again."""

Curve = list[tuple[float, Progress]]


def training_folder(models: str, category: str) -> str:
    """Where unfinished trainings of a category keep their state."""
    return storage.join(models, FOLDER, category)


def clear(models: str, category: str) -> None:
    """Removes what unfinished trainings of a category have left."""
    for entry in list(storage.list_objects(training_folder(models, category))):
        storage.delete(entry.uri)


class StoredCheckpoints:
    """Keeps the latest snapshot, every so often, together with the loss curve so far."""

    def __init__(self, uri: str, curve: Curve, *, every_s: float = EVERY_S,
                 say: Callable[[str], None] = lambda text: None) -> None:
        """
        Args:
            uri: of the one object that is kept.
            curve: filled by the caller while training reports; restored with the snapshot.
            every_s: seconds between two snapshots, at least.
            say: told where training goes on, or that a checkpoint cannot be read.
        """
        self.uri, self.curve, self.every_s, self.say = uri, curve, every_s, say
        self._kept_at = time.monotonic()

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
        unit = {"distil": "iteration", "em": "epoch"}[snapshot.phase]
        self.say(f"going on after {snapshot.branch} {unit} {snapshot.done}")
        return snapshot

    def offer(self, take: Callable[[], Snapshot]) -> None:
        if time.monotonic() - self._kept_at < self.every_s:
            return
        snapshot = take()
        about = {"branch": snapshot.branch, "phase": snapshot.phase, "done": snapshot.done,
                 "curve": [[at_s, vars(step)] for at_s, step in self.curve]}
        storage.write_bytes(self.uri, safetensors.torch.save(
            dict(snapshot.tensors), metadata={"igd": json.dumps(about)}))
        self._kept_at = time.monotonic()


def _header(data: bytes) -> dict[str, Any]:
    """What `offer` put beside the tensors (safetensors: 8 bytes of length, then JSON)."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(json.loads(data[8:8 + length])["__metadata__"]["igd"]))
