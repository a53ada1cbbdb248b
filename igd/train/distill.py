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
from igd.train.checkpoint import Snapshot, adam_tensors, restore_adam, within
from igd.train.inputs import Inputs

TEACHER_CHUNK = 64
SAME = 1e-6
"""Features that differ by less than this share of their size differ by rounding."""
REPORTS = 20
"""Times that a distillation says how far it is."""

Report = Callable[[int, int, dict[str, float]], None]


class Distillation:
    """One branch's encoder and the teacher's features.

    The teacher's features are centred and divided by one number, so that the loss starts near 1:
    it is the share of their variance that is not learnt yet. Where they are not 512 a linear map,
    trained along and thrown away, joins the two. BatchNorm is measured once, at the start.

    Attributes:
        done: iterations.
    """

    def __init__(self, inputs: Inputs, teacher: Teacher, config: Config,
                 generator: torch.Generator, saved: Snapshot | None = None) -> None:
        """
        Args:
            inputs: of a branch whose encoder is an `Encoder`, with the saved weights if it goes on.
            saved: what to go on from.

        Raises:
            DivergedError: the teacher's features do not vary.
        """
        self.inputs, self.config, self.generator = inputs, config.distill, generator
        encoder = inputs.encoder
        assert isinstance(encoder, Encoder)
        self.encoder = encoder
        if saved is None:
            self.kept_K = inputs.spread(self.config.max_inputs, generator)
            if config.net.batch_norm != "fixed":
                measured = inputs.few(len(self.kept_K), generator)
                measure_batch_norm(encoder, inputs.pixels(self.kept_K[measured]))
        else:
            self.kept_K = saved.tensors["kept"]
        self.target_KF = teacher_targets(inputs, self.kept_K, teacher, self.config.patch_side)
        channels = self.target_KF.shape[1]
        self.join = (linear(FEATURES, channels).to(self.target_KF.device)
                     if channels != FEATURES else nn.Identity())
        self.parameters = [*encoder.trunk.parameters(), *encoder.fc.parameters(),
                           *self.join.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=self.config.lr,
                                     weight_decay=self.config.weight_decay, fused=True)
        self.done = 0
        self._losses: list[Tensor] = []
        if saved is not None:
            self.done = saved.done
            self.join.load_state_dict(saved.part("join"))
            restore_adam(self.adam, saved.part("adam"), self.parameters)
            self._losses = list(saved.tensors["losses"].to(self.target_KF.device))

    def tensors(self) -> dict[str, Tensor]:
        """What `saved` needs beside the model's weights."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0)
        return {"kept": self.kept_K, "losses": losses, **within("join", self.join.state_dict()),
                **within("adam", adam_tensors(self.adam))}

    def run(self, report: Report, step_done: Callable[[], None]) -> None:
        """Goes on to the last iteration.

        Args:
            report: called with (iterations done, in all, {"distillation": the mean loss since
                the last call, "lr": the rate}).
            step_done: called after every iteration.

        Raises:
            DivergedError: the loss is not finite.
        """
        settings = self.config
        every = max(1, settings.iterations // REPORTS)
        while self.done < settings.iterations:
            self._step()
            self.done += 1
            if self.done % every == 0 or self.done == settings.iterations:
                report(self.done, settings.iterations, {
                    "distillation": _mean(self._losses, self.inputs.name, self.done),
                    "lr": settings.lr})
                self._losses.clear()
            step_done()
        self.encoder.zero_grad()

    def _step(self) -> None:
        workers = self.inputs.workers
        batch_B = torch.randint(len(self.kept_K), (self.config.batch_size,),
                                generator=self.generator)[workers.mine(self.config.batch_size)]
        features_BF = self.join(self.encoder.features(self.inputs.pixels(self.kept_K[batch_B])))
        loss = (features_BF - self.target_KF[batch_B.to(self.target_KF.device)]).square().mean()
        self.adam.zero_grad()
        loss.backward()
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        *grads, loss = workers.mean([*grads, loss.detach()], len(batch_B))
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        self.adam.step()
        self._losses.append(loss)


def teacher_targets(inputs: Inputs, input_K: Tensor, teacher: Teacher,
                    patch_side: int) -> Tensor:
    """The teacher's pooled features of the numbered inputs, centred, at mean square 1: (K, F).

    Patches are brought to `patch_side` first.

    Raises:
        DivergedError: they do not vary.
    """
    parts = []
    with torch.no_grad():
        own_K = input_K[inputs.workers.mine(len(input_K))]
        for chunk in torch.split(own_K, TEACHER_CHUNK):
            raw = inputs.raw(chunk).float()
            if raw.shape[-1] < patch_side:
                raw = F.interpolate(raw, (patch_side, patch_side), mode="bilinear",
                                    align_corners=False)
            parts.append(teacher.pooled(raw))
    raw_KF = inputs.workers.gather(torch.cat(parts), len(input_K))
    centred_KF = raw_KF - raw_KF.mean(0)
    scale = centred_KF.square().mean().sqrt()
    if not bool(scale > SAME * raw_KF.square().mean().sqrt()):
        raise DivergedError(f"distillation: the teacher says the same of all {len(input_K)} "
                            f"{inputs.name} inputs; expected different training images")
    return centred_KF / scale


def _mean(losses: list[Tensor], name: str, iteration: int) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise DivergedError(f"{name}_distillation is {mean} by iteration {iteration}: expected a "
                            "finite number; lower distill.lr")
    return mean
