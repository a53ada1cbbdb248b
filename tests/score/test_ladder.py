"""The ladder: from the paper's descriptor to preset `fast`'s."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from igd.config import DenseConfig, preset_config
from igd.data.synthetic import render
from igd.errors import DataError
from igd.model.dense import extract, fit_standardised, grid_heatmap
from igd.registry import load_teacher
from igd.score.baselines import BaselineScores, Padim, Sample
from igd.score.ladder import LADDER, ladder
from igd.train.calibrate import fit_dense

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = preset_config("fast", ["image.size=64", "calibration.folds=2"])


def sample(count: int, first: int) -> Sample:
    images = np.stack([render("weave", None, first + i, size=64, seed=0)[0] for i in range(count)])
    return Sample(images, np.full((count, 2), 64), extract(load_teacher(), as_input(images)))


def as_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def train(one_thread: None) -> Sample:
    return sample(24, 0)


@pytest.fixture(scope="module")
def test(one_thread: None) -> Sample:
    return sample(5, 500)


@pytest.fixture(scope="module")
def rungs(train: Sample, test: Sample) -> dict[str, BaselineScores]:
    return dict(ladder(train, test, CONFIG))


def test_the_ladder_has_methods_rows_in_their_order(rungs: dict[str, BaselineScores]) -> None:
    rows = [(f["mean"], f["covariance"], f["position_weight"], f["pooled"])
            for f in LADDER.values()]
    assert rows == [("shared", "isotropic", 0.0, False), ("position", "isotropic", 1.0, False),
                    ("shared", "full", 0.0, False), ("position", "full", 1.0, False),
                    ("position", "full", 0.5, False), ("position", "full", 0.5, True)]
    assert list(rungs) == list(LADDER)


def test_the_last_row_is_preset_fast(train: Sample, test: Sample,
                                     rungs: dict[str, BaselineScores]) -> None:
    *_, (name, fields) = LADDER.items()
    assert replace(DenseConfig(), **fields) == DenseConfig()
    model, _ = fit_dense(as_input(train.images_NHWC), CONFIG, load_teacher())
    scored = model(as_input(test.images_NHWC))
    np.testing.assert_array_equal(rungs[name].scores_N, scored.score_N)
    np.testing.assert_array_equal(rungs[name].heatmaps_NHW, scored.heatmap_NHW)


def test_the_first_row_is_the_papers_descriptor(train: Sample, test: Sample,
                                                rungs: dict[str, BaselineScores]) -> None:
    """||f(x) - mu||^2 / sigma^2 (Eq. 7), one mu and one sigma for all positions."""
    assert train.features is not None and test.features is not None
    x_NPC, new_NPC = train.features.local_NPC.double(), test.features.local_NPC.double()
    mu_C = x_NPC.mean((0, 1))
    sigma2 = (x_NPC - mu_C).square().sum() / (24 * 16 - 1) / 152
    grid_NP = ((new_NPC - mu_C).square().sum(2) / sigma2).sqrt()
    np.testing.assert_allclose(rungs["shared_isotropic"].heatmaps_NHW,
                               grid_heatmap(grid_NP, 64, 4.0), rtol=1e-4)
    assert np.argsort(rungs["shared_isotropic"].scores_N).tolist() == grid_NP.amax(1).argsort(
        ).tolist()


def test_the_row_per_position_is_padim(train: Sample, test: Sample,
                                       rungs: dict[str, BaselineScores]) -> None:
    padim = Padim.fit(train).score(test)
    np.testing.assert_array_equal(rungs["position_full"].heatmaps_NHW, padim.heatmaps_NHW)
    assert train.features is not None
    config = replace(CONFIG, dense=replace(CONFIG.dense, **LADDER["position_full"]))
    _, held_out = fit_standardised(train.features, config, load_teacher())
    normal_N = held_out.dense_N.double()
    np.testing.assert_allclose(rungs["position_full"].scores_N,
                               (padim.scores_N - normal_N.mean().item()) / normal_N.std().item())


def test_what_the_rows_leave_open_is_the_configs(train: Sample, test: Sample,
                                                 rungs: dict[str, BaselineScores]) -> None:
    config = replace(CONFIG, dense=replace(CONFIG.dense, ridge=0.5, position_weight=0.3))
    other = dict(ladder(train, test, config))
    for name, fields in LADDER.items():
        same = np.array_equal(rungs[name].scores_N, other[name].scores_N)
        assert same == (fields["covariance"] == "isotropic"), name  # which knows no ridge


def test_a_sample_without_features_is_an_error(train: Sample) -> None:
    bare = Sample(train.images_NHWC, train.source_size_N2)
    with pytest.raises(DataError, match="without teacher features"):
        dict(ladder(bare, train, CONFIG))
