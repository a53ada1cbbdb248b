import pytest
import pytorch_msssim
import torch

from igd.model.msssim import GLOBAL, LOCAL, Similarity, dissimilarity_map, ms_ssim, similarities

pytestmark = pytest.mark.usefixtures("one_thread")

L = 4.7579


def pair(n, side, noise=0.3):
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(n, 3, side // 8, side // 8),
                                             size=(side, side), mode="bilinear").double()
    return smooth, smooth + noise * torch.randn(n, 3, side, side)


def score(x, y, scales):
    return ms_ssim(similarities(x, y, scales, L), scales)


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_global_agrees_with_the_reference(noise):
    x, y = (t.float() for t in pair(1, 256, noise))
    reference = pytorch_msssim.ms_ssim(x, y, data_range=L, size_average=False)
    torch.testing.assert_close(score(x, y, GLOBAL), reference, rtol=0, atol=1e-6)


def test_local_agrees_with_the_reference_scale_by_scale():
    x, y = pair(5, 32)
    terms = []
    for maps in similarities(x, y, LOCAL, L):
        reference = pytorch_msssim.ssim(x, y, data_range=L, win_size=3, size_average=False)
        torch.testing.assert_close(maps.ssim.mean((1, 2, 3)), reference, rtol=0, atol=1e-6)
        terms.append((maps.cs.mean((2, 3)), maps.ssim.mean((2, 3))))
        x, y = (torch.nn.functional.avg_pool2d(t, 2) for t in (x, y))
    expected = terms[-1][1] ** LOCAL.weights[-1]
    for weight, (cs, _) in zip(LOCAL.weights[:-1], terms[:-1], strict=True):
        expected = expected * cs ** weight
    torch.testing.assert_close(score(*pair(5, 32), LOCAL), expected.mean(1))


def test_valid_maps_have_the_papers_sides():
    assert [m.cs.shape[-1] for m in similarities(*pair(1, 32), LOCAL, L)] == [30, 14, 6, 2]


@pytest.mark.parametrize(("scales", "side"), [(GLOBAL, 256), (LOCAL, 32)])
def test_identity_is_one_and_order_does_not_matter(scales, side):
    x, y = (t.float() for t in pair(2, side))
    torch.testing.assert_close(score(x, x, scales), torch.ones(2))
    torch.testing.assert_close(score(x, y, scales), score(y, x, scales))
    assert (score(x, y, scales) < 1).all()


@pytest.mark.parametrize(("scales", "side"), [(GLOBAL, 176), (LOCAL, 32)])
def test_gradient(scales, side):
    """176 is the smallest side whose fifth scale still holds the window."""
    x, y = (t.requires_grad_() for t in pair(2, side))
    assert torch.autograd.gradcheck(lambda x, y: score(x, y, scales), (x, y), fast_mode=True)


def test_gradient_is_finite_for_unlike_images():
    x = pair(1, 32)[0]
    y = (-x).requires_grad_()
    score(x, y, LOCAL).sum().backward()
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize(("scales", "side"), [(GLOBAL, 256), (LOCAL, 32)])
def test_map_is_zero_for_equal_images_and_lies_over_the_defect(scales, side):
    x = pair(1, side)[0].float()
    y = x.clone()
    a, b = side // 4, side // 2
    y[:, :, a:b, a:b] += 2 * torch.randn(1, 3, b - a, b - a)
    clean, defect = (dissimilarity_map(similarities(x, t, scales, L), scales, side)
                     for t in (x, y))
    assert clean.shape == (1, side, side)
    torch.testing.assert_close(clean, torch.zeros_like(clean), atol=1e-5, rtol=0)
    inside = defect[0, a:b, a:b].mean()
    assert inside > 3 * defect[0, :, b:].mean()
    assert inside > 3 * defect[0, b:].mean()


@pytest.mark.parametrize(("scales", "side"), [(GLOBAL, 256), (LOCAL, 32)])
def test_map_is_centre_aligned(scales, side):
    """A dissimilarity that grows with the window's centre, per scale, is that ramp again."""
    maps = []
    for j in range(len(scales.weights)):
        valid = torch.arange(side // 2**j - scales.window + 1) + scales.window // 2
        ramp = ((valid + 0.5) * 2**j - 0.5).expand(1, 1, len(valid), -1)
        maps.append(Similarity(1 - ramp, torch.zeros(()), torch.zeros(()), 1.0))
    middle = slice(side // 2 - 2**j // 2, side // 2 + 2**j // 2)
    expected = sum(scales.weights) * torch.arange(side)[middle]
    full = dissimilarity_map(maps, scales, side)[0, side // 2, middle]
    torch.testing.assert_close(full, expected)
