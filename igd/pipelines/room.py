"""Where a training keeps what grows with its images: in memory, or in scratch files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from igd.config import Config
from igd.data.datasets import Loaded, Read, load_normals
from igd.data.scratch import check_space, default_folder, in_gib, mapped
from igd.data.trees import ImageRef
from igd.model.dense import Zeros
from igd.pipelines.progress import Event, Meter, Report
from igd.train.memory import base_bytes, data_bytes

SHARE = 0.5
"""Of the memory that is free, where nobody says how much a training may take; of a GPU's, what
images and features may take of it."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Room:
    """Room for the pixels and frozen features of a training; equal bits wherever it is.

    Attributes:
        size: bytes of both.
        folder: of the scratch files; None: memory.
        why: it is there, for people; empty for memory.
    """

    size: int
    folder: str | None = None
    why: str = ""

    @classmethod
    def of(cls, images: int, config: Config, memory: int | None, scratch: str | None, *,
           gpu: bool = False) -> Room:
        """Scratch files where a training would take more memory than it may.

        Args:
            memory: bytes that its process may take; None: a share of what is free.
            scratch: folder of the scratch files; None: the system's for temporary files.

        Raises:
            StorageError: the folder has too little space.
        """
        size, base = data_bytes(images, config), base_bytes(images, config, gpu=gpu)
        allowed = int(SHARE * free_memory()) if memory is None else memory
        if size + base <= allowed:
            return cls(size)
        folder = scratch or default_folder()
        check_space(folder, size)
        return cls(size, folder, f"{images} images take {in_gib(size + base)} of memory, allowed "
                                 f"are {in_gib(allowed)}: {in_gib(size)} go to {folder}")

    def load(self, refs: Sequence[ImageRef], category: str, config: Config, report: Report,
             read: Read) -> Loaded:
        """The images of a category, read here where they stay in memory, else by `read`.

        Raises:
            DataError, StorageError: as `load_normals`.
        """
        meter = Meter(category, report, "reading", images_per_step=1)

        def progress(done: int, total: int) -> None:
            if done % 50 == 0 or done == total:
                meter(done, total)

        if self.folder is None:
            return load_normals(refs, config, progress=progress)
        report(Event(category, "beyond memory", text=self.why))
        return load_normals(refs, config, progress=progress, read=read,
                            empty=partial(mapped, self.folder, dtype=np.uint8))

    def device(self, device: str) -> str:
        """Where images and features lie in a training on a device: there, if they fit."""
        if device == "cpu" or self.folder is not None:
            return "cpu"
        free, _ = torch.cuda.mem_get_info(device)
        return device if self.size <= SHARE * free else "cpu"

    def zeros(self, device: str) -> Zeros:
        """What makes the tensors of frozen features that lie there."""
        if self.folder is None:
            return partial(torch.zeros, device=device)
        folder = self.folder
        return lambda shape: torch.from_numpy(mapped(folder, shape, np.float32))


def free_memory() -> int:
    """Bytes that this process could still take."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    for limit in map(Path, CGROUP_LIMITS):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
