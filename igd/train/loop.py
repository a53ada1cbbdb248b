"""EM training of the nets of one category (Section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from igd.config import Config
from igd.errors import DivergedError, ModelError
from igd.model.igd import IGD, PATCHES, SIDE, patches
from igd.model.teacher import EfficientNetLite0
from igd.train.schedule import poly_lr
from igd.train.step import MStep, draw_alpha, e_step

MEASURED_IMAGES = 64
MEASURED_PATCHES = 2048
"""BatchNorm statistics are measured on at most so many inputs, in one batch."""

Report = Callable[[int, dict[str, float]], None]


def train_nets(images_NCHW_uint8: Tensor, config: Config, *,
               teacher: EfficientNetLite0 | None = None, report: Report | None = None) -> IGD:
    """Trains both branches by EM; all randomness comes from `config.seed`.

    Equal images, config, machine and thread count give equal bits.

    Args:
        images_NCHW_uint8: normal RGB images (N, 3, 256, 256), on the device to train on.
        teacher: the frozen global encoder, on the same device (see `IGD`).
        report: called after every epoch with its number, from 0, and under `global_*` and
            `local_*` the mean of every loss term and of d/s (`distance`), `sigma2` and `lr`.

    Raises:
        ModelError: images of another shape or type, or a missing teacher.
        DivergedError: a term is NaN or infinite, or a Gaussian collapsed.
    """
    shape = tuple(images_NCHW_uint8.shape)
    if images_NCHW_uint8.dtype != torch.uint8 or shape[1:] != (3, SIDE, SIDE) or shape[0] < 2:
        raise ModelError(f"training images are {images_NCHW_uint8.dtype} {shape}: expected "
                         f"uint8 (N, 3, {SIDE}, {SIDE}) with N at least 2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = IGD(config, teacher).to(images_NCHW_uint8.device)
    training = _Training(config, model, images_NCHW_uint8)
    everything = torch.arange(shape[0])
    for epoch in range(config.train.epochs):
        training.e_step(training.draw_patches(everything), measure=measured_in(epoch, config))
        metrics = training.m_steps(epoch)
        if report is not None:
            report(epoch, metrics)
    # mu and sigma of the final map, over every patch. Its BatchNorm statistics stay those that
    # the last M-steps were taken with: new ones would be another map, which nobody trained.
    training.e_step(patches(images_NCHW_uint8).flatten(0, 2), measure=False)
    return model.eval()


def measured_in(epoch: int, config: Config) -> bool:
    """Whether the E-step before an epoch measures BatchNorm statistics (see `NetConfig`)."""
    return {"estimated": True, "initial": epoch == 0, "fixed": False}[config.net.batch_norm]


class _Training:
    """What a training keeps between its steps."""

    def __init__(self, config: Config, model: IGD, images_NCHW_uint8: Tensor) -> None:
        self.config = config
        self.model = model
        self.images = images_NCHW_uint8
        self.pooled_ND = None if model.teacher is None else _pooled(model.teacher, self.images)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.branches = {"global": model.global_branch, "local": model.local_branch}
        self.m_step = {name: MStep(branch, config.train)
                       for name, branch in self.branches.items()}

    def e_step(self, patches_PCHW_uint8: Tensor, *, measure: bool) -> None:
        """Both branches, on every image and on these patches.

        Args:
            measure: whether BatchNorm statistics are measured first.
        """
        seen = self.images if self.pooled_ND is None else self.pooled_ND
        for name, stored, read, most in (
                ("global", seen, self._read_global, MEASURED_IMAGES),
                ("local", patches_PCHW_uint8, self.model.normalise, MEASURED_PATCHES)):
            measured = stored[self._shuffled(len(stored))[:most]] if measure else None
            e_step(self.branches[name], stored, read, kappa=self.config.train.kappa,
                   measured=measured)

    def m_steps(self, epoch: int) -> dict[str, float]:
        """One epoch over the shuffled images; the means that `report` gets."""
        train = self.config.train
        batches = torch.split(self._shuffled(len(self.images)), train.batch_size)
        steps = train.epochs * len(batches)
        history: dict[str, list[Tensor]] = {}
        for i, batch in enumerate(batches):
            lr = poly_lr(epoch * len(batches) + i, steps, lr=train.lr, power=train.poly_power)
            for name, term in self._m_step(batch, lr).items():
                if not torch.isfinite(term):
                    raise DivergedError(f"{name} is {float(term)} in epoch {epoch}, step {i}: "
                                        f"expected a finite number; lower train.lr ({train.lr})")
                history.setdefault(name, []).append(term)
        metrics = {name: float(torch.stack(values).mean()) for name, values in history.items()}
        for name, branch in self.branches.items():
            metrics |= {f"{name}_sigma2": float(branch.gaussian.sigma2), f"{name}_lr": lr}
        return metrics

    def draw_patches(self, batch: Tensor) -> Tensor:
        """Random patches of the images numbered in `batch`, without repeats, (P, C, 32, 32)."""
        k = self.config.train.patches_per_image
        chosen_NK = torch.rand(len(batch), PATCHES, generator=self.generator).argsort(1)[:, :k]
        grid = patches(self.images)
        columns = grid.shape[2]
        at = (batch[:, None], chosen_NK // columns, chosen_NK % columns)
        return grid[tuple(index.to(grid.device) for index in at)].flatten(0, 1)

    def _m_step(self, batch: Tensor, lr: float) -> dict[str, Tensor]:
        image_NCHW, patch_PCHW = (self.model.normalise(uint8) for uint8 in
                                  (self.images[batch], self.draw_patches(batch)))
        seen = image_NCHW if self.pooled_ND is None else self.pooled_ND[batch]
        terms: dict[str, Tensor] = {}
        for name, encoder_input, x_NCHW in (("global", seen, image_NCHW),
                                            ("local", patch_PCHW, patch_PCHW)):
            alpha_N = draw_alpha(len(x_NCHW), self.generator).to(x_NCHW.device)
            step_terms = self.m_step[name](encoder_input, x_NCHW, alpha_N, lr)
            terms |= {f"{name}_{term}": value for term, value in step_terms.items()}
        return terms

    def _read_global(self, stored: Tensor) -> Tensor:
        """What the global encoder reads: cached features as they are, or normalised pixels."""
        return self.model.normalise(stored) if self.pooled_ND is None else stored

    def _shuffled(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator).to(self.images.device)


def _pooled(teacher: EfficientNetLite0, images_NCHW_uint8: Tensor) -> Tensor:
    """Frozen features never change in training: (N, 1280), once, one image at a time."""
    with torch.no_grad():
        return torch.cat([teacher.pooled(image_1CHW.float())
                          for image_1CHW in torch.split(images_NCHW_uint8, 1)])
