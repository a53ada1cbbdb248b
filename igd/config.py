"""What a model is made of: frozen dataclasses, their presets and `--set a.b=c`.

Everything here is part of a bundle's provenance, so an unknown key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from igd.errors import ConfigError

Preset = Literal["fast", "small", "paper"]
EncoderKind = Literal["trained", "distilled", "teacher"]
PRESETS: tuple[Preset, ...] = ("fast", "small", "paper")

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How bytes become the model's input (METHOD: resize, centre crop, RGB)."""

    size: int = 256
    """Side of the square input, in pixels; a multiple of 32."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: short side to `size`, centre crop. `squash`: the whole image, aspect ratio lost."""
    max_pixels: int = 64_000_000
    """An image with more pixels is rejected before its pixels are allocated."""

    def __post_init__(self) -> None:
        _check(self.size % 32 == 0 and 32 <= self.size <= 1024, "image.size", self.size,
               "a multiple of 32 from 32 to 1024")
        _check(self.max_pixels > 0, "image.max_pixels", self.max_pixels, "a positive number")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """The nets of the paper (Section 3.3) at any width."""

    width: int = 64
    """Channel multiplier; 64 is the paper's."""
    latent: int = 128
    """Size d_z of the descriptor."""
    branches: Literal["both", "local"] = "both"
    """`local`: the 32x32 nets are the only branch (the one-class protocols)."""
    global_encoder: EncoderKind = "distilled"
    """`distilled`: the branch's own net, taught by the teacher (Eq. 10), then frozen under a
    linear layer. `teacher`: the frozen teacher itself, globally pooled, as in the authors'
    code. `trained`: the branch's own net, trained with the rest."""
    local_encoder: EncoderKind = "distilled"
    """The same for the patches; `teacher` reads the frozen EfficientNet-Lite0's dense features
    at each patch's place."""
    teacher: Literal["efficientnet-lite0", "resnet18"] = "efficientnet-lite0"
    """The frozen ImageNet network."""
    teacher_weights: str = ""
    """ResNet18: its weights, a safetensors file with torchvision's names."""
    batch_norm: Literal["estimated", "initial", "fixed"] = "estimated"
    """`estimated`: statistics measured in each E-step and frozen for the epoch.
    `initial`: measured in the first E-step and kept; a short training has no time to learn
    again what new statistics undo. `fixed`: 0 and 1, as in the authors' training."""

    def __post_init__(self) -> None:
        _check(self.width >= 1, "net.width", self.width, "at least 1")
        _check(self.latent >= 1, "net.latent", self.latent, "at least 1")
        if self.teacher == "resnet18" and self.needs_teacher:
            _check(bool(self.teacher_weights), "net.teacher_weights", self.teacher_weights,
                   "the path of a safetensors file, since net.teacher is resnet18")
            _check(self.local_encoder != "teacher", "net.local_encoder", self.local_encoder,
                   "trained or distilled where net.teacher is resnet18 (dense features are "
                   "EfficientNet-Lite0's)")
        _check(self.branches == "both" or self.local_encoder != "teacher", "net.local_encoder",
               self.local_encoder, "trained or distilled where net.branches is local (there is "
               "no whole image around a patch)")

    @property
    def encoders(self) -> dict[str, EncoderKind]:
        """The encoder of each branch there is, by the branch's name."""
        if self.branches == "local":
            return {"local": self.local_encoder}
        return {"global": self.global_encoder, "local": self.local_encoder}

    @property
    def needs_teacher(self) -> bool:
        """Whether training takes a teacher."""
        return any(kind != "trained" for kind in self.encoders.values())


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Knowledge distillation (Eq. 10)."""

    iterations: int = 50_000
    batch_size: int = 64
    """Images, or patches, per iteration."""
    lr: float = 1e-4
    weight_decay: float = 1e-5
    max_inputs: int = 65_536
    """Patches that the teacher sees, drawn evenly over the images; its features are kept in
    memory (5 kB each)."""
    patch_side: int = 64
    """Patches are brought to this side for the teacher, which sees nothing in 32 pixels."""

    def __post_init__(self) -> None:
        for name in ("iterations", "max_inputs"):
            _check(getattr(self, name) >= 1, f"distill.{name}", getattr(self, name), "at least 1")
        _check(self.batch_size >= 2, "distill.batch_size", self.batch_size, "at least 2")
        _check(self.lr > 0, "distill.lr", self.lr, "a positive number")
        _check(self.weight_decay >= 0, "distill.weight_decay", self.weight_decay, "at least 0")
        _check(32 <= self.patch_side <= 256, "distill.patch_side", self.patch_side, "32 to 256")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation of the nets (Eq. 4-9)."""

    epochs: int = 256
    batch_size: int = 64
    """Images per step (global) and, times `patches_per_image`, patches per step (local)."""
    patches_per_image: int = 16
    """Local patches drawn from each image in a step, anew in every one; 225 is all of them, which
    at the paper's width and batch takes over 100 GB (8 MB a patch)."""
    lr: float = 1e-4
    poly_power: float = 0.9
    """lr * (1 - step / steps) ** poly_power."""
    beta1: float = 0.0
    beta2: float = 0.9
    weight_decay: float = 1e-6
    interpolation: bool = True
    """Whether decoded interpolations are trained against the critic (Eq. 5, 6)."""
    zeta: float = 0.2
    """Mix of image and reconstruction that the critic is regularised on (Eq. 5)."""
    adversarial_weight: float = 0.1
    """Weight of d(x_alpha)^2 in Eq. 6."""
    rho: float = 0.15
    """Weight of the L1 term against MS-SSIM (Eq. 8)."""
    descriptor: Literal["gsvdd", "dsvdd", "none"] = "gsvdd"
    """`gsvdd`: Eq. 7. `dsvdd`: soft-boundary Deep SVDD (Ruff et al. 2018), its radius by the
    nu-quantile. `none`: reconstruction alone, which then is the whole score."""
    kappa: float = 0.5
    """Scale of sigma^2 in the E-step (Eq. 7)."""
    nu: float = 0.1
    """Deep SVDD: the share of training images that the sphere may leave out."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "train.epochs", self.epochs, "at least 1")
        _check(self.batch_size >= 2, "train.batch_size", self.batch_size, "at least 2")
        _check(1 <= self.patches_per_image <= 225, "train.patches_per_image",
               self.patches_per_image, "1 to 225")
        _check(self.lr > 0, "train.lr", self.lr, "a positive number")
        for name in ("rho", "zeta"):
            _check(0 <= getattr(self, name) <= 1, f"train.{name}", getattr(self, name), "0 to 1")
        for name in ("beta1", "beta2"):
            _check(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name),
                   "from 0 to below 1")
        _check(0 < self.nu < 1, "train.nu", self.nu, "between 0 and 1")
        for name in ("poly_power", "weight_decay", "adversarial_weight", "kappa"):
            _check(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the nets' terms become one score (Eq. 11)."""

    profile: Literal["paper", "official", "standardised"] = "paper"
    """`paper`: Eq. 11. `official`: the authors' code, also in training, where SSIM then takes
    pixels around their mean. `standardised`: the sum of the terms, each
    on the scale of held-out normals."""
    xi: float = 0.5
    """`paper`: weight of reconstruction against the descriptor."""
    beta: float = 0.1
    """`paper`, and every heatmap: weight of the global branch against the local one."""

    def __post_init__(self) -> None:
        _check(0 <= self.xi <= 1, "mix.xi", self.xi, "0 to 1")
        _check(0 <= self.beta <= 1, "mix.beta", self.beta, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """The Gaussian descriptor on dense teacher features (preset `fast`)."""

    mean: Literal["position", "shared"] = "position"
    """A mean for each position of the grid, or one for all of them."""
    covariance: Literal["full", "isotropic"] = "full"
    """Of the local descriptors. `isotropic`: (tr/C) I, as in the paper; `ridge` has no effect."""
    position_weight: float = 0.5
    """Share of a position's own covariance; the rest is the covariance shared by all."""
    ridge: float = 0.01
    """Share of the isotropic part (tr/C) I in every local covariance."""
    pooled: bool = True
    """Whether the image score counts the pooled, global descriptor; it is a term either way."""
    global_ridge: float = 0.05
    """The same as `ridge` for the covariance of the global descriptor, which is always full."""
    smoothing_px: float = 4.0
    """Sigma of the Gaussian that smooths the heatmap, in input pixels."""

    def __post_init__(self) -> None:
        for name in ("position_weight", "ridge", "global_ridge"):
            _check(0 <= getattr(self, name) <= 1, f"dense.{name}", getattr(self, name), "0 to 1")
        _check(self.ridge > 0, "dense.ridge", self.ridge, "above 0")
        _check(self.global_ridge > 0, "dense.global_ridge", self.global_ridge, "above 0")
        _check(self.smoothing_px >= 0, "dense.smoothing_px", self.smoothing_px,
               "at least 0 (0 smooths nothing)")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Which normal images the decisions are calibrated on."""

    folds: int = 10
    """`fast`: every normal is scored by a model fitted without its fold."""
    fraction: float = 0.2
    """Nets: the share of normals held out of training."""
    min_images: int = 10
    """Fewer normals than this are refused."""
    twin_correlation: float = 0.95
    """Normals whose thumbnails, less the mean one, correlate more are near-duplicates and stay on
    one side of every split; 1: only equal ones."""
    max_unreadable: float = 0.01
    """A larger share of unreadable training images is an error."""

    def __post_init__(self) -> None:
        _check(self.folds >= 2, "calibration.folds", self.folds, "at least 2")
        _check(0 < self.fraction < 1, "calibration.fraction", self.fraction, "between 0 and 1")
        _check(self.min_images >= 4, "calibration.min_images", self.min_images, "at least 4")
        _check(0 < self.twin_correlation <= 1, "calibration.twin_correlation",
               self.twin_correlation, "above 0, at most 1")
        _check(0 <= self.max_unreadable <= 1, "calibration.max_unreadable", self.max_unreadable,
               "0 to 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a model is, for one category."""

    preset: Preset
    seed: int = 0
    image: ImageConfig = field(default_factory=ImageConfig)
    net: NetConfig = field(default_factory=NetConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        if self.preset == "fast":
            _check(self.image.size >= 64, "image.size", self.image.size,
                   "at least 64 for preset fast")
        else:
            side = {"both": 256, "local": 32}[self.net.branches]
            _check(self.image.size == side, "image.size", self.image.size,
                   f"{side} for preset {self.preset} with net.branches={self.net.branches} (its "
                   "nets have that input)")


def preset_config(preset: str, overrides: Sequence[str] = (), *, seed: int = 0) -> Config:
    """The config of a preset, changed by `--set` items such as `train.epochs=4`.

    Raises:
        ConfigError: an unknown preset, key or value.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    tree: dict[str, Any] = {"preset": preset, "seed": seed}
    if preset == "small":
        tree["net"] = {"width": 8, "global_encoder": "teacher", "batch_norm": "initial"}
        tree["distill"] = {"iterations": 1000, "lr": 1e-3, "max_inputs": 8192}
        # rho: in so few steps MS-SSIM alone leaves the brightness of even patches unlearnt
        tree["train"] = {"epochs": 12, "batch_size": 8, "lr": 1e-3, "rho": 0.5}
    for item in overrides:
        _apply(tree, item)
    return config_from_dict(tree, where="--set")


def config_from_dict(tree: Mapping[str, Any], *, where: str) -> Config:
    """Builds a `Config` from plain data.

    Args:
        tree: nested mappings, as `dataclasses.asdict` writes them.
        where: the file or option the data came from, for messages.

    Raises:
        ConfigError: an unknown key or a value of the wrong type, with its full name.
    """
    return typing.cast(Config, _build(Config, tree, where, ""))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain data that `config_from_dict` reads back."""
    return dataclasses.asdict(config)


def check_name(name: str, what: str) -> str:
    """Returns a category or version name, or raises `ConfigError`."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"{what} {name!r} cannot be used as a name: expected 1 to 64 letters, "
                          "digits, '.', '_' or '-', the first a letter or digit")
    return name


def _check(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"config {key} is {value!r}: expected {expected}")


def _apply(tree: dict[str, Any], item: str) -> None:
    key, eq, text = item.partition("=")
    parts = key.strip().split(".")
    if not eq or not all(parts):
        raise ConfigError(f"--set {item!r}: expected KEY=VALUE, for example train.epochs=4")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {item!r}: {part!r} is a value, not a group of settings")
    node[parts[-1]] = value


def _build(cls: type, tree: object, where: str, prefix: str) -> object:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'config'} is {tree!r}: "
                          "expected a group of settings")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in tree:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}: unknown config key {prefix}{key} "
                              f"(value {tree[key]!r}); {hint}")
    values = {key: _value(hints[key], value, where, prefix + key) for key, value in tree.items()}
    try:
        return cls(**values)
    except ConfigError as error:  # out of range; the class does not know where the value stood
        raise ConfigError(f"{where}: {error}") from None


def _value(hint: Any, value: object, where: str, key: str) -> object:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where, key + ".")
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{where}: config {key} is {value!r}; expected one of "
                              f"{', '.join(map(str, allowed))}")
        return value
    if isinstance(hint, types.GenericAlias):
        raise TypeError(f"config field {key} has an unsupported type {hint}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**53 else math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: config {key} is {value!r}; expected a finite number")
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{where}: config {key} is {value!r}; expected {hint.__name__}")
    return value
