"""Knowledge distillation (Eq. 10): a branch's own encoder learns a frozen teacher's features."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.config import Config
from igd.errors import DivergedError
from igd.model.blocks import linear, measure_batch_norm
from igd.model.networks import FEATURES, Encoder
from igd.model.teacher import Teacher
from igd.train.inputs import Inputs

TEACHER_CHUNK = 64
REPORTS = 20
"""Times that a distillation says how far it is."""

Report = Callable[[int, int, dict[str, float]], None]


def distill(inputs: Inputs, teacher: Teacher, config: Config, generator: torch.Generator,
            report: Report) -> None:
    """Teaches the 512-d features of a branch's encoder, in place.

    The teacher's features are centred and divided by one number, so that the loss starts near 1:
    it is the share of their variance that is not learnt yet. Where they are not 512 a linear map,
    trained along and thrown away, joins the two. BatchNorm is measured once, at the start.

    Args:
        inputs: of a branch whose encoder is an `Encoder`.
        report: called with (iterations done, in all, {"distillation": the mean loss since the
            last call, "lr": the rate}).

    Raises:
        DivergedError: the loss is not finite, or the teacher's features do not vary.
    """
    settings = config.distill
    encoder = inputs.encoder
    assert isinstance(encoder, Encoder)
    kept_K = inputs.spread(settings.max_inputs, generator)
    target_KF = teacher_targets(inputs, kept_K, teacher, settings.patch_side)
    if config.net.batch_norm != "fixed":
        measure_batch_norm(encoder, inputs.pixels(kept_K[inputs.few(len(kept_K), generator)]))
    join = (linear(FEATURES, target_KF.shape[1]).to(target_KF.device)
            if target_KF.shape[1] != FEATURES else nn.Identity())
    adam = torch.optim.Adam([*encoder.trunk.parameters(), *encoder.fc.parameters(),
                             *join.parameters()],
                            lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    losses: list[Tensor] = []
    every = max(1, settings.iterations // REPORTS)
    for i in range(settings.iterations):
        batch_B = torch.randint(len(kept_K), (settings.batch_size,), generator=generator)
        features_BF = join(encoder.features(inputs.pixels(kept_K[batch_B])))
        loss = (features_BF - target_KF[batch_B.to(target_KF.device)]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
        if (i + 1) % every == 0 or i + 1 == settings.iterations:
            report(i + 1, settings.iterations, {"distillation": _mean(losses, inputs.name, i + 1),
                                                "lr": settings.lr})
            losses.clear()
    encoder.zero_grad()


def teacher_targets(inputs: Inputs, input_K: Tensor, teacher: Teacher,
                    patch_side: int) -> Tensor:
    """The teacher's pooled features of the numbered inputs, centred, at mean square 1: (K, F).

    Patches are brought to `patch_side` first.

    Raises:
        DivergedError: they do not vary.
    """
    parts = []
    with torch.no_grad():
        for chunk in torch.split(input_K, TEACHER_CHUNK):
            raw = inputs.raw(chunk).float()
            if raw.shape[-1] < patch_side:
                raw = F.interpolate(raw, (patch_side, patch_side), mode="bilinear",
                                    align_corners=False)
            parts.append(teacher.pooled(raw))
    centred_KF = torch.cat(parts)
    centred_KF = centred_KF - centred_KF.mean(0)
    scale = centred_KF.square().mean().sqrt()
    if not bool(scale > 0):
        raise DivergedError(f"distillation: the teacher says the same of all {len(input_K)} "
                            f"{inputs.name} inputs; expected different training images")
    return centred_KF / scale


def _mean(losses: list[Tensor], name: str, iteration: int) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise DivergedError(f"{name}_distillation is {mean} by iteration {iteration}: expected a "
                            "finite number; lower distill.lr")
    return mean
