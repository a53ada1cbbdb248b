"""Settings: presets, what is refused and how the message says it, the JSON round trip."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.config import (
    PRESETS,
    check_name,
    config_from_dict,
    config_to_dict,
    preset_config,
)
from igd.errors import ConfigError

rates = st.floats(0, 1)
VALUES = {
    "image.size": st.integers(2, 32).map(lambda n: 32 * n),
    "image.fit": st.sampled_from(["crop", "squash"]),
    "net.width": st.integers(1, 128),
    "train.epochs": st.integers(1, 1000),
    "train.lr": st.floats(1e-9, 10) | st.integers(1, 10),
    "train.rho": rates,
    "mix.xi": rates,
    "dense.ridge": st.floats(1e-6, 1),
    "dense.mean": st.sampled_from(["position", "shared"]),
    "dense.pooled": st.booleans(),
    "calibration.folds": st.integers(2, 50),
    "calibration.max_unreadable": rates,
}


@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.none()).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})),
    st.integers(0, 2**63 - 1))
def test_a_config_survives_json(overrides: dict[str, object], seed: int) -> None:
    items = [f"{key}={value if isinstance(value, str) else json.dumps(value)}"
             for key, value in overrides.items()]
    config = preset_config("fast", items, seed=seed)
    for key, value in overrides.items():
        group, _, name = key.partition(".")
        assert getattr(getattr(config, group), name) == value
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), where="x") == config


@pytest.mark.parametrize(("item", "words"), [
    ("train.epoch=4", ["--set", "train.epoch ", "4", "did you mean train.epochs?"]),
    ("trian.epochs=4", ["--set", "trian", "did you mean train?"]),
    ("volume=11", ["--set", "volume", "11", "known: preset"]),
    ("train.epochs=many", ["--set", "train.epochs", "'many'", "int"]),
    ("train.epochs=4.0", ["--set", "train.epochs", "4.0", "int"]),
    ("train.epochs=true", ["--set", "train.epochs", "True", "int"]),
    ("train.lr=true", ["--set", "train.lr", "True", "float"]),
    ("train.lr=NaN", ["--set", "train.lr", "nan", "finite"]),
    ("dense.smoothing_px=Infinity", ["--set", "dense.smoothing_px", "inf", "finite"]),
    ("train=4", ["--set", "train", "4", "group of settings"]),
    ("seed.a=4", ["--set", "seed", "value, not a group"]),
    ("train.epochs", ["--set", "'train.epochs'", "KEY=VALUE"]),
    (".epochs=4", ["--set", "'.epochs=4'", "KEY=VALUE"]),
    ("image.fit=stretch", ["--set", "image.fit", "'stretch'", "crop, squash"]),
    ("image.size=100", ["--set", "image.size", "100", "multiple of 32"]),
    ("train.epochs=0", ["--set", "train.epochs", "0", "at least 1"]),
    ("train.beta2=1.0", ["--set", "train.beta2", "1.0", "below 1"]),
    ("train.kappa=-1", ["--set", "train.kappa", "-1.0", "at least 0"]),
    ("dense.ridge=0", ["--set", "dense.ridge", "0.0", "above 0"]),
    ("dense.mean=image", ["--set", "dense.mean", "'image'", "position, shared"]),
    ("dense.covariance=diagonal", ["--set", "dense.covariance", "'diagonal'", "full, isotropic"]),
    ("dense.pooled=1", ["--set", "dense.pooled", "1", "bool"]),
    ("calibration.folds=1", ["--set", "calibration.folds", "1", "at least 2"]),
    ("seed=-1", ["--set", "seed", "-1"]),
])
def test_a_bad_setting_is_refused_with_option_key_and_value(item: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        preset_config("fast", [item])
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_bad_value_in_a_file_names_the_file() -> None:
    tree = config_to_dict(preset_config("fast"))
    tree["mix"]["beta"] = 1.5
    with pytest.raises(ConfigError, match=r"^m/bundle\.json: config mix\.beta is 1\.5"):
        config_from_dict(tree, where="m/bundle.json")


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'quick'; expected one of fast, small, paper"):
        preset_config("quick")


def test_presets_are_what_method_says() -> None:
    paper, small, fast = (preset_config(name) for name in ("paper", "small", "fast"))
    assert {paper.preset, small.preset, fast.preset} == set(PRESETS)
    # METHOD "Networks", "Training": width 64, d_z 128, 256 epochs, Adam(0, 0.9), 225 patches
    assert (paper.net.width, paper.net.latent, paper.image.size) == (64, 128, 256)
    assert (paper.train.epochs, paper.train.batch_size, paper.train.lr) == (256, 64, 1e-4)
    assert (paper.train.beta1, paper.train.beta2, paper.train.poly_power) == (0.0, 0.9, 0.9)
    assert (paper.train.zeta, paper.train.adversarial_weight) == (0.2, 0.1)
    assert (paper.mix.xi, paper.mix.beta) == (0.5, 0.1)
    assert small.net.width < paper.net.width and small.train.epochs < paper.train.epochs
    assert small.net.latent == paper.net.latent and small.mix == paper.mix
    # METHOD "Beyond the paper": 0.99 [0.5 S_p + 0.5 S] + 0.01 (tr/C) I, 5% for the global one
    assert (fast.dense.position_weight, fast.dense.ridge, fast.dense.global_ridge) == (
        0.5, 0.01, 0.05)
    assert (fast.dense.mean, fast.dense.covariance, fast.dense.pooled) == (
        "position", "full", True)


def test_only_fast_takes_another_input_size() -> None:
    assert preset_config("fast", ["image.size=64"]).image.size == 64
    with pytest.raises(ConfigError, match=r"image\.size is 64: expected 256 for preset paper"):
        preset_config("paper", ["image.size=64"])


@pytest.mark.parametrize("name", ["a", "7", "metal_nut", "a..b", "x" * 64, "v1.0-rc"])
def test_a_usable_name_is_returned(name: str) -> None:
    assert check_name(name, "category") == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "-a", "_a", ".a", "a\n",
                                  "x" * 65, "é", "a\0"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name, "category")
    assert f"category {name!r}" in str(caught.value)
