import pytest
import torch

from igd.config import preset_config
from igd.errors import DivergedError, ModelError
from igd.model.igd import patches
from igd.registry import load_teacher
from igd.train import loop, step
from igd.train.checkpoint import Snapshot
from igd.train.distill import Distillation
from igd.train.loop import Progress, findings, train_nets
from igd.train.step import MStep, e_step

TINY = ["net.width=2", "net.latent=8", "net.global_encoder=trained", "net.local_encoder=trained",
        "train.batch_size=3", "train.patches_per_image=4", "net.batch_norm=estimated"]


def make_images(n=6):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def train(*overrides, seed=0, report=lambda progress: None, checkpoints=None):
    config = preset_config("small", [*TINY, *overrides], seed=seed)
    teacher = load_teacher() if config.net.needs_teacher else None
    return train_nets(make_images(), config, teacher=teacher, report=report,
                      checkpoints=checkpoints)


@pytest.fixture(scope="module")
def history():
    return []


@pytest.fixture(scope="module")
def trained(history):
    return train("train.epochs=6", "train.lr=2e-3",
                 report=history.append)


def test_mu_and_sigma_are_those_of_the_final_map(trained):
    x = trained.normalise(make_images())
    for name, encoder_input in (("global", x), ("local", patches(x).flatten(0, 2))):
        branch = trained.branch(name)
        with torch.no_grad():
            z = branch.encoder(encoder_input).double()
        torch.testing.assert_close(branch.gaussian.mu_D.double(), z.mean(0), rtol=1e-4,
                                   atol=1e-5)
        spread = 0.5 * (z - z.mean(0)).square().sum(1).mean().item()
        assert branch.gaussian.sigma2.item() == pytest.approx(max(1, spread), rel=1e-4)


@pytest.mark.parametrize(("mode", "measured"), [
    ("estimated", [True, True, False]), ("initial", [True, False, False]),
    ("fixed", [False, False, False])])
def test_the_final_map_is_the_one_that_was_trained(monkeypatch, mode, measured):
    """BatchNorm is measured before an epoch's M-steps, never after the last of them."""
    calls = []
    monkeypatch.setattr(loop, "e_step", lambda *args, measured: (
        calls.append(measured is not None), e_step(*args, measured=measured)))
    train("train.epochs=2", "train.patches_per_image=1", f"net.batch_norm={mode}")
    assert calls == measured * 2  # one branch after the other


def test_losses_fall(trained, history):
    for branch in ("global", "local"):
        epochs = [step.metrics for step in history if step.branch == branch]
        assert epochs[-1]["reconstruction"] < epochs[0]["reconstruction"], branch


def test_report_names_every_term_of_both_branches(trained, history):
    terms = {"reconstruction", "adversarial", "gsvdd", "critic", "distance", "sigma2", "lr"}
    seen = [(step.branch, step.phase, step.done, step.steps) for step in history]
    assert seen == [(branch, "em", done, 6) for branch in ("global", "local")
                    for done in range(7)]
    assert all(set(step.metrics) == terms for step in history)
    assert all(isinstance(step, Progress) for step in history)


def test_distillation_comes_first_and_only_the_linear_layer_follows(monkeypatch):
    """The distilled features are those of the trained model, bit for bit."""
    kept = {}
    run = Distillation.run

    def run_and_keep(self, *args):
        run(self, *args)
        kept.update({name: value.clone() for name, value in self.encoder.state_dict().items()})

    monkeypatch.setattr(Distillation, "run", run_and_keep)
    steps = []
    model = train("train.epochs=2", "net.local_encoder=distilled", "distill.iterations=6",
                  "distill.batch_size=4", "distill.max_inputs=30", report=steps.append)
    local = [step for step in steps if step.branch == "local"]
    assert [step.phase for step in local] == ["distil"] * 6 + ["em"] * 3
    assert local[5].done == local[5].steps == 6
    after = model.branch("local").encoder.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, kept[name])}
    assert moved == {"linear.weight", "linear.bias"}


def test_what_needs_a_teacher_says_so():
    with pytest.raises(ModelError, match="no teacher was given"):
        train_nets(make_images(), preset_config("small", [*TINY, "net.local_encoder=distilled"]))


def test_equal_seeds_give_equal_bits_and_others_do_not():
    state = torch.random.get_rng_state()
    first, second = (train("train.epochs=1").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train("train.epochs=1", seed=1).state_dict()
    assert not torch.equal(first["branches.local.encoder.fc.weight"],
                           other["branches.local.encoder.fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


class Interrupted(Exception):
    pass


class Kept:
    """Keeps every snapshot and stops the training after some."""

    def __init__(self, last: Snapshot | None = None, most: int = 10**9) -> None:
        self.latest, self.most = last, most
        self.seen: list[tuple[str, str, int]] = []

    def last(self):
        return self.latest

    def offer(self, take):
        self.latest = take()
        self.seen.append((self.latest.branch, self.latest.phase, self.latest.done))
        if len(self.seen) == self.most:
            raise Interrupted


def test_taken_up_from_any_checkpoint_a_training_ends_in_the_same_bits():
    settings = ["train.epochs=2", "net.global_encoder=distilled", "net.local_encoder=distilled",
                "distill.iterations=3", "distill.batch_size=4", "distill.max_inputs=30"]
    everything, undisturbed_steps = Kept(), []
    undisturbed = train(*settings, report=undisturbed_steps.append, checkpoints=everything)
    assert everything.seen == [(branch, phase, done) for branch in ("global", "local")
                               for phase, most in (("distil", 3), ("em", 2))
                               for done in range(1, most + 1)]
    for most in range(1, len(everything.seen) + 1):
        first, steps = Kept(most=most), []
        with pytest.raises(Interrupted):
            train(*settings, report=steps.append, checkpoints=first)
        torch.rand(7)  # another process has drawn other random numbers
        second = Kept(first.latest)
        model = train(*settings, report=steps.append, checkpoints=second)
        assert first.seen + second.seen == everything.seen
        assert steps == undisturbed_steps, first.seen[-1]
        for name, value in undisturbed.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (first.seen[-1], name)


def test_divergence_names_epoch_step_and_term():
    with pytest.raises(DivergedError, match=r"\w+_\w+ is nan in epoch 0, step 1"):
        train("train.epochs=1", "train.lr=1e30")


def test_equal_images_collapse():
    config = preset_config("small", [*TINY, "train.epochs=1"])
    with pytest.raises(DivergedError, match="global_distance, E-step of epoch 0, before step 0: "
                                            "the Gaussian collapsed"):
        train_nets(make_images(1).expand(4, -1, -1, -1), config)


def train_patches(*overrides):
    """Of the local branch alone: two steps in each of two epochs."""
    config = preset_config("small", [*TINY, "net.branches=local", "image.size=32",
                                     "train.epochs=2", *overrides])
    return train_nets(make_images()[..., 64:96, 64:96].contiguous(), config)


@pytest.mark.parametrize(("loss", "term"), [
    ("reconstruction_loss", "reconstruction"), ("critic_loss", "critic"),
    ("adversarial_loss", "adversarial"), ("gsvdd_loss", "gsvdd"), ("soft_boundary_loss", "dsvdd")])
def test_a_loss_that_becomes_nan_stops_training_and_is_named(monkeypatch, loss, term):
    real, calls = getattr(step, loss), []

    def nan_in_the_fourth(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(step, loss, nan_in_the_fourth)
    descriptor = "dsvdd" if term == "dsvdd" else "gsvdd"
    with pytest.raises(DivergedError, match=f"local_{term} is nan in epoch 1, step 1"):
        train_patches(f"train.descriptor={descriptor}")
    assert len(calls) == 4


@pytest.mark.parametrize("descriptor", ["gsvdd", "dsvdd"])
@pytest.mark.parametrize(("after", "weight", "said"), [
    (2, 0.0, "E-step of epoch 1, before step 0: the Gaussian collapsed: all 6 descriptors"),
    (4, 0.0, "E-step after the last epoch: the Gaussian collapsed"),
    (4, float("inf"), "E-step after the last epoch: a descriptor is NaN or infinite")])
def test_descriptors_that_collapse_or_overflow_stop_training(monkeypatch, descriptor, after,
                                                             weight, said):
    real, calls = MStep.__call__, []

    def then_spoilt(self, *args):
        terms = real(self, *args)
        calls.append(terms)
        if len(calls) == after:
            with torch.no_grad():
                self.branch.encoder.linear.weight.fill_(weight)
        return terms

    monkeypatch.setattr(MStep, "__call__", then_spoilt)
    with pytest.raises(DivergedError, match=f"local_distance, {said}"):
        train_patches(f"train.descriptor={descriptor}")
    assert len(calls) == after


def test_other_inputs_are_refused():
    with pytest.raises(ModelError, match="training images are"):
        train_nets(make_images(1), preset_config("small", TINY))


def ended(branch, done, **metrics):
    return Progress(branch=branch, phase="em", done=done, steps=2,
                    metrics={"sigma2": 3.0, "adversarial": 0.1, **metrics})


def test_what_a_training_ended_in_is_said_of_its_last_epoch_alone():
    curve = [ended("global", 1, sigma2=1.0), ended("global", 2, adversarial=1e-14),
             ended("local", 1, adversarial=1e-14), ended("local", 2, sigma2=1.0)]
    said = findings(curve)
    assert [line.split(":")[0] for line in said] == ["global", "local"]
    assert "interpolation taught nothing" in said[0] and "lower bound 1" in said[1]
    assert findings([ended("local", 2)]) == []
