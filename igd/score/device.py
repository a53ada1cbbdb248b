"""Where models compute. Loads no torch: a run is asked for, planned and read without."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Where a model computes, and how many images it takes at once.

    Attributes:
        name: as torch has it.
        batch: images of every forward.
    """

    name: str
    batch: int


CPU, GPU = Device("cpu", 1), Device("cuda", 16)
