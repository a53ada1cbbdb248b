"""ResNet18 against a plain form with its BatchNorms apart, on random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from igd.errors import ModelError
from igd.model.resnet import ResNet18
from igd.model.teacher import EfficientNetLite0, Teacher

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, Tensor]


def random_weights(blocks: tuple[int, ...] = (2, 2, 2, 2), seed: int = 0) -> Weights:
    """Weights of a ResNet of basic blocks, in torchvision's names, shapes and order."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def conv(name: str, cout: int, cin: int, kernel: int) -> None:
        bound = (6 / (cin * kernel * kernel)) ** 0.5
        weights[f"{name}.weight"] = uniform(-bound, bound, cout, cin, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = uniform(0.5, 1.5, channels)
        weights[f"{name}.bias"] = uniform(-0.5, 0.5, channels)
        weights[f"{name}.running_mean"] = uniform(-0.5, 0.5, channels)
        weights[f"{name}.running_var"] = uniform(0.001, 4, channels)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    cin = 64
    for stage, (count, cout) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        for i in range(count):
            at = f"layer{stage}.{i}"
            conv(f"{at}.conv1", cout, cin, 3)
            norm(f"{at}.bn1", cout)
            conv(f"{at}.conv2", cout, cout, 3)
            norm(f"{at}.bn2", cout)
            if cin != cout:
                conv(f"{at}.downsample.0", cout, cin, 1)
                norm(f"{at}.downsample.1", cout)
            cin = cout
    weights["fc.weight"] = uniform(-0.04, 0.04, 1000, 512)
    weights["fc.bias"] = uniform(-0.04, 0.04, 1000)
    return weights


def plain(weights: Weights, image_NCHW: Tensor) -> Tensor:
    """Pooled features, each layer of the paper's Table 1 by itself, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def normed(x: Tensor, conv: str, norm: str, stride: int, padding: int) -> Tensor:
        x = F.conv2d(x, w[f"{conv}.weight"], stride=stride, padding=padding)
        return F.batch_norm(x, w[f"{norm}.running_mean"], w[f"{norm}.running_var"],
                            w[f"{norm}.weight"], w[f"{norm}.bias"], training=False, eps=1e-5)

    red, green, blue = (image_NCHW.double() / 255).unbind(1)
    x = torch.stack([(red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225], 1)
    x = F.max_pool2d(F.relu(normed(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for i in (0, 1):
            at = f"layer{stage}.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            y = F.relu(normed(x, f"{at}.conv1", f"{at}.bn1", stride, 1))
            y = normed(y, f"{at}.conv2", f"{at}.bn2", 1, 1)
            if stride == 2:
                x = normed(x, f"{at}.downsample.0", f"{at}.downsample.1", 2, 0)
            x = F.relu(x + y)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return (torch.rand(count, 3, height, width, generator=generator) * 255).round()


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def teacher(weights: Weights) -> ResNet18:
    return ResNet18(weights)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64), (97, 128), (224, 224)])
def test_it_equals_the_plain_form(weights: Weights, teacher: ResNet18,
                                  size: tuple[int, int]) -> None:
    image = images(2, *size)
    expected = plain(weights, image)
    pooled = teacher.pooled(image)
    assert pooled.shape == (2, 512) and pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-4,
                               atol=1e-4 * float(expected.mean()))
    assert expected.std(1).min() > 0.1 * expected.mean()  # the comparison is about something


def test_an_image_alone_equals_itself_in_a_batch(teacher: ResNet18) -> None:
    image = images(5, 64, 64)
    alone = torch.cat([teacher.pooled(one[None]) for one in image])
    torch.testing.assert_close(teacher.pooled(image), alone, rtol=1e-4,
                               atol=1e-4 * float(alone.mean()))
    assert (alone[0] - alone[1]).abs().max() > 0.1 * alone.mean()


def test_it_has_the_parameters_of_the_paper_without_the_classifier(
        weights: Weights, teacher: ResNet18) -> None:
    trained = [tensor.numel() for name, tensor in weights.items() if not name.startswith("fc.")
               and name.endswith((".weight", ".bias"))]
    assert sum(trained) == 11_176_512
    folded = sum(parameter.numel() for parameter in teacher.parameters())
    assert folded == 11_176_512 - 4_800  # scale and shift of 4,800 channels are one bias


def test_it_is_frozen_in_evaluation_and_channels_last(teacher: ResNet18) -> None:
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    kernels = [parameter for parameter in teacher.parameters() if parameter.dim() == 4]
    assert len(kernels) == 20
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_its_weights_are_its_own(weights: Weights) -> None:
    mine = {name: tensor.clone() for name, tensor in weights.items()}
    teacher = ResNet18(mine)
    before = teacher.pooled(images(1, 32, 32))
    for tensor in mine.values():
        tensor.zero_()
    assert torch.equal(teacher.pooled(images(1, 32, 32)), before)


@pytest.mark.parametrize("dropped", ["fc.", "num_batches_tracked"])
def test_what_is_ignored_may_be_missing(weights: Weights, teacher: ResNet18, dropped: str) -> None:
    rest = {name: tensor for name, tensor in weights.items() if dropped not in name}
    assert len(rest) < len(weights)
    image = images(1, 32, 32)
    assert torch.equal(ResNet18(rest).pooled(image), teacher.pooled(image))


def test_a_classifier_of_other_classes_or_of_nan_is_ignored(weights: Weights) -> None:
    ResNet18({**weights, "fc.weight": torch.full((7, 512), torch.nan), "fc.bias": torch.ones(7)})


def test_half_precision_weights_are_taken(weights: Weights) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()}
    image = images(1, 64, 64)
    pooled = ResNet18(half).pooled(image)
    assert pooled.dtype == torch.float32
    expected = plain(half, image)
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-4,
                               atol=1e-4 * float(expected.mean()))


@pytest.mark.parametrize("cls", [EfficientNetLite0, ResNet18])
def test_a_teacher_says_how_many_channels_it_pools(cls: type[Teacher]) -> None:
    assert cls.channels == {EfficientNetLite0: 1280, ResNet18: 512}[cls]


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 3, 32)])
def test_images_that_are_not_rgb_are_refused(teacher: ResNet18, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"images have shape \(.*\): expected \(N, 3, H, W\)"):
        teacher.pooled(torch.zeros(shape))


NAMES = ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight",
         "layer3.0.downsample.1.running_mean", "layer4.1.bn2.running_var"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_is_named(weights: Weights, name: str) -> None:
    partial = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(ModelError, match=f"lack '{name}': expected .* ResNet18"):
        ResNet18(partial)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t[:-1], r"have shape \(\d+,.*\): expected \(\d+,.*\).* ResNet18"),
    (lambda t: t[None], r"have shape \(1, .*\): expected \(\d+,.*\)"),
    (lambda t: t.index_fill(0, torch.tensor(3), torch.nan),
     "hold NaN or infinity: expected finite"),
    (lambda t: t.index_fill(0, torch.tensor(3), -torch.inf), "hold NaN or infinity"),
    (lambda t: t.mul(100).to(torch.int64), r"are torch\.int64: expected floating point"),
    (lambda t: t.to(torch.complex64), r"are torch\.complex64: expected floating point"),
], ids=["short", "deep", "nan", "inf", "integer", "complex"])
def test_a_damaged_tensor_is_named(weights: Weights, name: str, change, message: str) -> None:
    with pytest.raises(ModelError, match=f"'{name}' {message}"):
        ResNet18({**weights, name: change(weights[name])})


def test_a_variance_below_zero_is_refused(weights: Weights) -> None:
    name = "layer2.1.bn1.running_var"
    with pytest.raises(ModelError, match=f"'{name}' hold -2: expected variances"):
        ResNet18({**weights, name: weights[name].index_fill(0, torch.tensor(5), -2.0)})


def test_a_variance_of_zero_is_taken(weights: Weights) -> None:
    dead = {**weights, "layer4.1.bn2.running_var": torch.zeros(512)}
    image = images(1, 32, 32)
    expected = plain(dead, image)
    torch.testing.assert_close(ResNet18(dead).pooled(image).double(), expected, rtol=1e-4,
                               atol=1e-4 * float(expected.mean()))


def test_resnet34_is_recognised_though_it_has_every_tensor_of_resnet18(weights: Weights) -> None:
    deeper = random_weights((3, 4, 6, 3))
    assert all(deeper[name].shape == tensor.shape for name, tensor in weights.items())
    with pytest.raises(ModelError, match=r"'layer1\.2\.conv1\.weight', which ResNet18 has not "
                       r"\(.*looks like a deeper ResNet .*ResNet34\): expected .* ResNet18"):
        ResNet18(deeper)


def test_resnet50_is_recognised_by_its_bottlenecks(weights: Weights) -> None:
    bottleneck = {"layer1.0.conv3.weight": torch.zeros(256, 64, 1, 1),
                  "layer1.2.conv2.weight": torch.zeros(64, 64, 3, 3)}
    with pytest.raises(ModelError, match=r"'layer1\.0\.conv3\.weight', which .*ResNet50 or larger"):
        ResNet18({**weights, **bottleneck})


def test_names_with_a_prefix_are_refused_with_no_guess(weights: Weights) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(ModelError, match=r"'module\.conv1\.weight', which ResNet18 has not: "):
        ResNet18(prefixed)


def test_an_empty_state_dict_lacks_the_first_tensor() -> None:
    with pytest.raises(ModelError, match=r"lack 'conv1\.weight'"):
        ResNet18({})
