"""How much memory a training takes."""

from __future__ import annotations

from igd.config import Config
from igd.model.dense import LOCAL_CHANNELS, PART_BYTES, POOLED_SIZE
from igd.model.igd import PATCHES
from igd.model.networks import FEATURES
from igd.model.teacher import HEAD_CHANNELS
from igd.train.inputs import MEASURED_IMAGES, MEASURED_PATCHES
from igd.train.step import CHUNK

MIB = 1 << 20
PROCESS = 512 * MIB
"""Of Python with torch and Ray, measured."""
GPU_PROCESS = 4096 * MIB
"""The same with what CUDA takes of the host; what the nets compute with is on the GPU."""
PATCH_STEP, IMAGE_STEP = MIB // 8, 5 * MIB
"""Activations and gradients of a patch or a whole image in a step, by width; measured."""
PATCH_PASS, IMAGE_PASS = MIB // 20, 2 * MIB
"""The same without gradients, where BatchNorm is measured."""
IMAGE_READ, IMAGE_ENCODED = 3 * MIB, MIB // 2
"""Pixels as floats, and activations of the encoder by width, of a whole image in the E-step."""


def data_bytes(images: int, config: Config) -> int:
    """Of what grows with the images and may lie in scratch files: pixels and frozen features."""
    return images * (3 * config.image.size ** 2 + 4 * _features(config))


def base_bytes(images: int, config: Config, *, gpu: bool = False) -> int:
    """Of all else that a training's process holds; on the host, where the nets are on a GPU."""
    if config.preset == "fast":
        # covariances, their factors and inverses; parts of the features
        positions = (config.image.size // 16) ** 2
        return PROCESS + 4 * 8 * positions * LOCAL_CHANNELS ** 2 + 4 * PART_BYTES
    if gpu:
        return GPU_PROCESS
    net, train, distill = config.net, config.train, config.distill
    inputs = images * (PATCHES if "global" in net.encoders else 1)
    taught = min(distill.max_inputs, inputs) if "distilled" in net.encoders.values() else 0
    most = max(PATCH_STEP * train.batch_size * min(train.patches_per_image, inputs),
               PATCH_PASS * min(MEASURED_PATCHES, inputs))
    if "global" in net.encoders:
        most = max(most, IMAGE_STEP * train.batch_size, IMAGE_PASS * min(MEASURED_IMAGES, images))
    working = net.width * most
    if net.encoders.get("global") == "trained":
        working = max(working, min(CHUNK, images) * (IMAGE_READ + net.width * IMAGE_ENCODED))
    return PROCESS + 3 * 4 * HEAD_CHANNELS * taught + working


def _features(config: Config) -> int:
    """Numbers that are kept of an image: of one branch, since they are trained in turn."""
    if config.preset == "fast":
        return (config.image.size // 16) ** 2 * LOCAL_CHANNELS + POOLED_SIZE
    each = {"local": PATCHES if "global" in config.net.encoders else 1, "global": 1}
    of = {("local", "teacher"): LOCAL_CHANNELS, ("global", "teacher"): HEAD_CHANNELS}
    return max(0 if kind == "trained" else each[name] * of.get((name, kind), FEATURES)
               for name, kind in config.net.encoders.items())
