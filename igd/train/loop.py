"""EM training of the nets of one category (Section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from igd.config import Config
from igd.errors import DivergedError, ModelError
from igd.model.dense import Zeros
from igd.model.gaussian import SIGMA2_MIN
from igd.model.igd import IGD, PATCH, SIDE
from igd.model.teacher import Teacher
from igd.train.checkpoint import (
    Checkpoints,
    NoCheckpoints,
    Phase,
    Snapshot,
    copied,
    within,
)
from igd.train.distill import Distillation
from igd.train.images import Images
from igd.train.inputs import Inputs
from igd.train.schedule import poly_lr
from igd.train.step import MStep, draw_alpha, e_step
from igd.train.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        branch: `global` or `local`; one is trained after the other.
        phase: `distil` counts iterations, `em` epochs.
        done, steps: iterations or epochs done, of so many; epoch 0 is the very first step, with
            the terms before any update.
        metrics: `distil`: `distillation`, the share of the teacher's variance not learnt, and
            `lr`. `em`: the epoch's mean of every loss term and of d/s (`distance`), `sigma2`
            and `lr`.
    """

    branch: str
    phase: Phase
    done: int
    steps: int
    metrics: dict[str, float]


Report = Callable[[Progress], None]
SATURATED = 1e-6
"""A mean d(x_alpha)^2 below this has no gradient to speak of."""


def train_nets(images_NCHW_uint8: Tensor | Images, config: Config, *,
               teacher: Teacher | None = None, report: Report = lambda progress: None,
               checkpoints: Checkpoints | None = None, workers: Workers = ALONE,
               zeros: Zeros | None = None) -> IGD:
    """Distils and trains every branch by EM; all randomness comes from `config.seed`.

    Equal images, config, machine, thread count and number of workers give equal bits, in one go
    or taken up from a checkpoint. Several workers train what one trains, up to rounding; every
    one of them returns the model.

    Args:
        images_NCHW_uint8: normal RGB images (N, 3, 256, 256), on the device to train on; 32x32
            where `net.branches` is "local".
        teacher: the frozen network, on the same device, where an encoder needs it.
        report: called after every epoch, and now and then in a distillation; on every worker,
            with the same numbers.
        checkpoints: offered the state after every epoch and every iteration of a distillation;
            training goes on from the last one, which must be of equal images and config. Of
            several workers the first alone offers, and all must be given the same last one.
        workers: who share the batches; each calls this with all images.
        zeros: makes what frozen features are written to, which grow with the images (see
            `Inputs`); by default it is on the device.

    Raises:
        ModelError: images of another shape or type, a missing teacher, or workers that were not
            given the same.
        DivergedError: a term is NaN or infinite, or a Gaussian collapsed; on every worker.
    """
    side = SIDE if config.net.branches == "both" else PATCH
    images = Images.of(images_NCHW_uint8)
    dtype, shape = images.source_NCHW.dtype, images.shape
    if dtype != torch.uint8 or shape[1:] != (3, side, side) or shape[0] < 2:
        raise ModelError(f"training images are {dtype} {shape}: expected uint8 "
                         f"(N, 3, {side}, {side}) with N at least 2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = IGD(config, teacher).to(images.device)
        _Training(model, images, config, teacher, report, checkpoints or NoCheckpoints(),
                  workers, zeros).run()
    return model.eval()


def findings(curve: Sequence[Progress]) -> list[str]:
    """What a training ended in that its scores do not show, a line each."""
    lines = []
    for name, last in {step.branch: step.metrics for step in curve if step.phase == "em"}.items():
        if last["sigma2"] <= SIGMA2_MIN:
            lines.append(f"{name}: sigma^2 is at its lower bound {SIGMA2_MIN:g}; distances no "
                         "longer follow the spread of the normals")
        if last.get("adversarial", 1.0) < SATURATED:
            lines.append(f"{name}: the critic takes every image for alpha = 0 (adversarial term "
                         f"{last['adversarial']:.2g}); interpolation taught nothing at the end")
    return lines


def measured_in(epoch: int, config: Config) -> bool:
    """Whether the E-step before an epoch measures BatchNorm statistics (see `NetConfig`)."""
    return {"estimated": True, "initial": epoch == 0, "fixed": False}[config.net.batch_norm]


class _Training:
    """The branches one after the other, from the start or from a checkpoint."""

    def __init__(self, model: IGD, images: Images, config: Config, teacher: Teacher | None,
                 report: Report, checkpoints: Checkpoints, workers: Workers,
                 zeros: Zeros | None) -> None:
        self.model, self.images, self.config = model, images, config
        self.teacher, self.report, self.checkpoints = teacher, report, checkpoints
        self.workers, self.zeros = workers, zeros
        self.generator = torch.Generator()

    def run(self) -> None:
        saved = self.checkpoints.last()
        names = list(self.config.net.encoders)
        if saved is not None:
            self.model.load_state_dict(saved.part("model"))
            names = names[names.index(saved.branch):]
        self._check_workers(saved)
        for name in names:
            self._branch(Inputs(self.model, name, self.images, self.workers, self.zeros), saved)
            saved = None

    def _check_workers(self, saved: Snapshot | None) -> None:
        """Whatever differed at the start would differ ever more."""
        self.workers.check_same(
            self.images.device, images=self.images.in_parts(), config=[repr(self.config)],
            weights=self.model.state_dict().values(),
            checkpoint=[] if saved is None else [
                f"{saved.branch} {saved.phase} {saved.done}", *saved.tensors.values()])

    def _branch(self, inputs: Inputs, saved: Snapshot | None) -> None:
        kind = self.config.net.encoders[inputs.name]
        self.generator.manual_seed(self.config.seed)
        if kind == "distilled" and (saved is None or saved.phase == "distil"):
            self._distil(inputs, saved)
            saved = None
        if kind != "trained":
            inputs.freeze()
        em = _Em(inputs, self.config, self.generator, saved)
        self._take_up(saved)
        em.run(self.report, lambda: self._offer(inputs.name, "em", em.epoch, em.tensors))

    def _distil(self, inputs: Inputs, saved: Snapshot | None) -> None:
        if self.teacher is None:
            raise ModelError(f"net.{inputs.name}_encoder is distilled but no teacher was given: "
                             "pass it as `teacher`")
        phase = Distillation(inputs, self.teacher, self.config, self.generator, saved)
        self._take_up(saved)
        phase.run(lambda done, steps, metrics: self.report(Progress(
            branch=inputs.name, phase="distil", done=done, steps=steps, metrics=metrics)),
            lambda: self._offer(inputs.name, "distil", phase.done, phase.tensors))

    def _take_up(self, saved: Snapshot | None) -> None:
        """Random numbers go on where they were; whatever was drawn to get here does not count."""
        if saved is not None:
            self.generator.set_state(saved.tensors["random.generator"])
            torch.set_rng_state(saved.tensors["random.torch"])

    def _offer(self, branch: str, phase: Phase, done: int,
               tensors: Callable[[], dict[str, Tensor]]) -> None:
        if self.workers.rank > 0:
            return
        self.checkpoints.offer(lambda: Snapshot(
            branch=branch, phase=phase, done=done, tensors=copied({
                **tensors(), **within("model", self.model.state_dict()),
                "random.generator": self.generator.get_state(),
                "random.torch": torch.get_rng_state()})))


class _Em:
    """Expectation and maximisation of one branch.

    Attributes:
        epoch: done so far.
    """

    def __init__(self, inputs: Inputs, config: Config, generator: torch.Generator,
                 saved: Snapshot | None) -> None:
        self.inputs = inputs
        self.config = config
        self.generator = generator
        self.m_step = MStep(inputs.branch, config.train,
                            frozen=config.net.encoders[inputs.name] != "trained",
                            workers=inputs.workers)
        self.epoch = 0
        if saved is not None:
            self.epoch = saved.done
            self.m_step.restore(saved)

    def tensors(self) -> dict[str, Tensor]:
        """What `saved` needs beside the model's weights."""
        return self.m_step.tensors()

    def run(self, report: Report, epoch_done: Callable[[], None]) -> None:
        while self.epoch < self.config.train.epochs:
            self._e_step(self.epoch)
            first, metrics = self._m_steps(self.epoch)
            if self.epoch == 0:
                report(self._progress(0, first))
            self.epoch += 1
            report(self._progress(self.epoch, metrics))
            epoch_done()
        # Centre and sigma of the final map, over every input. Its BatchNorm statistics stay those
        # that the last M-steps were taken with: new ones would be another map, which nobody
        # trained.
        self._fit(torch.arange(self.inputs.total), None, "after the last epoch")

    def _progress(self, epoch: int, metrics: dict[str, float]) -> Progress:
        return Progress(branch=self.inputs.name, phase="em", done=epoch,
                        steps=self.config.train.epochs, metrics=metrics)

    def _e_step(self, epoch: int) -> None:
        """On every input where features are at hand, else on as many as an epoch sees."""
        inputs, train = self.inputs, self.config.train
        if inputs.features_IF is None:
            fitted = inputs.draw(torch.arange(len(inputs.images)), train.patches_per_image,
                                 self.generator)
        else:
            fitted = torch.arange(inputs.total)
        measured = (fitted[inputs.few(len(fitted), self.generator)]
                    if measured_in(epoch, self.config) else None)
        self._fit(fitted, measured, f"of epoch {epoch}, before step 0")

    def _fit(self, input_P: Tensor, measured: Tensor | None, when: str) -> None:
        try:
            e_step(self.inputs, input_P, self.config.train, measured=measured)
        except DivergedError as error:
            raise DivergedError(f"{self.inputs.name}_distance, E-step {when}: {error}") from error

    def _m_steps(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """One epoch over the shuffled images; metrics of its first step, and their means."""
        train, name = self.config.train, self.inputs.name
        order = torch.randperm(len(self.inputs.images), generator=self.generator)
        batches = torch.split(order, train.batch_size)
        history: dict[str, list[Tensor]] = {}
        for i, batch in enumerate(batches):
            lr = poly_lr(epoch * len(batches) + i, train.epochs * len(batches), lr=train.lr,
                         power=train.poly_power)
            for term, value in self._m_step(batch, lr).items():
                if not torch.isfinite(value):
                    raise DivergedError(f"{name}_{term} is {float(value)} in epoch {epoch}, step "
                                        f"{i}: expected a finite number; lower train.lr "
                                        f"({train.lr})")
                history.setdefault(term, []).append(value)
        means = {term: float(torch.stack(values).mean()) for term, values in history.items()}
        settings = {"sigma2": float(self.inputs.branch.gaussian.sigma2), "lr": lr}
        return ({**{term: float(values[0]) for term, values in history.items()}, **settings},
                {**means, **settings})

    def _m_step(self, batch: Tensor, lr: float) -> dict[str, Tensor]:
        inputs = self.inputs
        input_P = inputs.draw(batch, self.config.train.patches_per_image, self.generator)
        alpha_P = draw_alpha(len(input_P), self.generator)
        mine = inputs.workers.mine(len(input_P))
        input_P, alpha_P = input_P[mine], alpha_P[mine]
        x_PCHW = inputs.pixels(input_P)
        seen = x_PCHW if inputs.features_IF is None else inputs.seen(input_P)
        return self.m_step(seen, x_PCHW, alpha_P.to(x_PCHW.device), lr)
