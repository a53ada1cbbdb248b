import pytest
import torch
import torch.nn.functional as F

from igd.model import blocks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_conv_mean_pool_is_conv_then_mean_pool():
    x, kernel, bias = rand(2, 3, 8, 8), rand(5, 3, 3, 3), rand(5)
    plain = F.avg_pool2d(F.conv2d(x, kernel, bias, padding=1), 2)
    torch.testing.assert_close(blocks.conv_mean_pool(x, kernel, bias), plain)


@pytest.mark.parametrize("side", [3, 5])
def test_up_conv_is_nearest_then_conv(side):
    x, kernel, bias = rand(2, 3, 6, 6), rand(5, 3, side, side), rand(5)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), kernel, bias, padding=side // 2)
    torch.testing.assert_close(blocks.up_conv(x, kernel, bias), plain)


def test_up_block_is_its_plain_form():
    block = blocks.Up(4, 2).double()
    x = rand(3, 4, 5, 5)
    up = F.interpolate(x, scale_factor=2.0)
    y = block.conv1(F.relu(block.norm1(up)))
    plain = block.conv2(F.relu(block.norm2(y))) + block.shortcut(up)
    torch.testing.assert_close(block(x), plain)


def test_down_block_is_its_plain_form():
    block = blocks.Down(4, 6, 8, blocks.LayerNorm).double()
    x = rand(3, 4, 8, 8)
    y = block.conv2(F.relu(block.norm2(block.conv1(F.relu(block.norm1(x))))))
    plain = F.avg_pool2d(y + block.shortcut(x), 2)
    torch.testing.assert_close(block(x), plain)


def test_layer_norm_runs_over_channels_rows_and_columns():
    norm = blocks.LayerNorm(3, 4)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        norm.weight_HWC.normal_()
        norm.bias_HWC.normal_()
    weight, bias = (p.permute(2, 0, 1) for p in (norm.weight_HWC, norm.bias_HWC))
    torch.testing.assert_close(norm(x), F.group_norm(x, 1) * weight + bias)


def test_batch_norm_ignores_batch_mates_in_train_mode():
    norm = blocks.BatchNorm(3).train()
    x = torch.randn(4, 3, 5, 5) * 7
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=0)
    assert torch.equal(norm(x)[:1], norm(x[:1]))


def test_measured_batch_norm_standardises_every_layer_under_the_new_map():
    first, second = blocks.BatchNorm(4), blocks.BatchNorm(6)
    conv = blocks.conv(4, 6, 3)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), conv, second)
    x = torch.randn(64, 4, 8, 8) * 3 + 5
    measured = blocks.measure_batch_norm(net, x)
    torch.testing.assert_close(net(x), measured)
    for out in (first(x), net(x)):
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(out.shape[1]), atol=1e-4,
                                   rtol=0)
        torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(out.shape[1]), atol=1e-3,
                                   rtol=0)
