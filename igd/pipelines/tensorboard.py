"""The training of the nets as TensorBoard shows it: loss curves, and what the decoders draw."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboardX import SummaryWriter

from igd.train.loop import Progress

FOLDER = "tensorboard"
"""In a bundle's folder."""


def files(curve: Sequence[tuple[float, Progress]],
          strips: Mapping[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """An event file, and each strip as a PNG too, by their path in the bundle's folder.

    Tags are `local/em/reconstruction`: branch, phase, term; steps are iterations of a
    distillation and epochs of EM.

    Args:
        curve: when training reported (seconds since 1970), and what.
        strips: `igd.train.strip` by branch, (H, W, 3).
    """
    found = {f"{FOLDER}/reconstruction-{branch}.png": _png(strip_HWC)
             for branch, strip_HWC in strips.items()}
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for at_s, progress in curve:
                for term, value in scalars(progress).items():
                    writer.add_scalar(f"{progress.branch}/{progress.phase}/{term}", value,
                                      progress.done, walltime=at_s)
            last = {progress.branch: progress.done for _, progress in curve}
            for branch, strip_HWC in strips.items():
                writer.add_image(f"{branch}/reconstruction", strip_HWC, last[branch],
                                 dataformats="HWC")
        found |= {f"{FOLDER}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    return found


def scalars(progress: Progress) -> dict[str, float]:
    """The metrics, and the root of sigma2 as `sigma`."""
    metrics = progress.metrics
    return metrics | ({"sigma": math.sqrt(metrics["sigma2"])} if "sigma2" in metrics else {})


def _png(image_HWC: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG")
    return stream.getvalue()
