"""What a branch's decoder draws, as one picture: reconstructions and interpolations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from igd.model.igd import IGD
from igd.train.inputs import Inputs

ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5)
COLUMNS = len(ALPHAS) + 2
PAIRS = COLUMNS // 2
TILE = 128
"""Side of a tile in pixels: a patch enlarged four times, an image at half its size."""
GAP = 4


def strip(model: IGD, name: str, image_NCHW_uint8: Tensor) -> Tensor:
    """The picture of one branch, (H, W, 3), uint8; equal arguments give equal pixels.

    The first row holds seven inputs x from all over the images, the second their reconstructions.
    Each row below leads from an input x2 over x_alpha of Eq. 5, alpha = 0, .125, .25, .375, .5,
    towards an x1: alpha = 0 is the reconstruction of x2, .5 is halfway.

    Args:
        image_NCHW_uint8: RGB images of the model's size, on its device; where there are fewer
            than seven, some come twice.
    """
    image_K = torch.linspace(0, len(image_NCHW_uint8) - 1, COLUMNS).long()
    inputs = Inputs(model, name, image_NCHW_uint8[image_K.to(image_NCHW_uint8.device)])
    if model.encoders[name] == "teacher":
        inputs.freeze()
    input_K = inputs.draw(torch.arange(COLUMNS), 1, torch.Generator().manual_seed(0))
    x_KCHW = inputs.pixels(input_K)
    with torch.inference_mode():
        branch = inputs.branch
        z_KD = branch.describe(inputs.seen(input_K))
        rows = [x_KCHW, branch.decoder(z_KD)]
        for i in range(PAIRS):
            alpha_A1 = torch.tensor(ALPHAS, device=z_KD.device)[:, None]
            z_AD = alpha_A1 * z_KD[i] + (1 - alpha_A1) * z_KD[-1 - i]  # x2: the batch reversed
            rows.append(torch.cat([x_KCHW[-1 - i][None], branch.decoder(z_AD), x_KCHW[i][None]]))
        return _picture([_tiles(model, row_KCHW) for row_KCHW in rows])


def _tiles(model: IGD, x_KCHW: Tensor) -> Tensor:
    """Normalised pixels as a row of tiles on white, (TILE + GAP, W, 3), uint8."""
    pixel_KCHW = (x_KCHW * model.std_C11 + model.mean_C11).clamp(0, 1) * 255
    tile_KCHW = F.adaptive_avg_pool2d(pixel_KCHW, TILE).round()
    row_KCHW = F.pad(tile_KCHW, (GAP, 0, GAP, 0), value=255)
    return torch.cat(list(row_KCHW), 2).permute(1, 2, 0).byte().cpu()


def _picture(rows: list[Tensor]) -> Tensor:
    """Rows below each other, framed; a wide gap after the reconstructions."""
    gap_HW3 = torch.full((4 * GAP, *rows[0].shape[1:]), 255, dtype=torch.uint8)
    picture_HW3 = torch.cat([*rows[:2], gap_HW3, *rows[2:]])
    return F.pad(picture_HW3, (0, 0, 0, GAP, 0, GAP), value=255)
