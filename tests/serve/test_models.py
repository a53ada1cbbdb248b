"""Models in memory: the bits of a scorer, a budget, and one bad image that fails alone."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd import registry
from igd.errors import DataError, IgdError, ModelError
from igd.score.device import Device
from igd.score.scorer import Scorer
from igd.serve.local import LocalScorers
from igd.serve.models import Ask, Models

SIZE = 64
NAMES = ("bobbin", "heddle", "reed", "shuttle")


@pytest.fixture(scope="module")
def many(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four categories, every second one with the model of another product."""
    root = tmp_path_factory.mktemp("many")
    for number, name in enumerate(NAMES):
        shutil.copytree(tiny_models / ("weave", "washer")[number % 2], root / name)
    return str(root)


def ask(models: str, category: str, seed: int = 0, pixels: bytes | None = None) -> Ask:
    drawn = np.random.default_rng(seed).integers(0, 256, SIZE * SIZE * 3, np.uint8).tobytes()
    return Ask(category=category, version=registry.production_version(models, category),
               width=SIZE, height=SIZE, pixels=drawn if pixels is None else pixels)


def loaded(models: str, max_bytes: int = 1 << 30, batch: int = 1) -> Models:
    return Models(models, fpr=.04, review_fpr=.2, max_bytes=max_bytes,
                  device=Device("cpu", batch))


def test_an_answer_has_the_bits_of_a_scorer(many: str) -> None:
    asked = replace(ask(many, "reed"), heatmap=True)
    answer, = loaded(many).score([asked])
    scorer = Scorer.load(f"{many}/reed")
    expected = scorer.score([np.frombuffer(asked.pixels, np.uint8).reshape(SIZE, SIZE, 3)])
    assert answer.score == expected.scores[0]
    assert answer.terms == {name: term[0] for name, term in expected.terms.items()}
    assert answer.heatmap_HW is not None and (answer.heatmap_HW == expected.heatmaps[0]).all()
    assert loaded(many).score([ask(many, "reed")])[0].heatmap_HW is None


def test_the_least_recently_used_model_makes_room(many: str) -> None:
    models = loaded(many)
    for name in NAMES:
        models.open(name, registry.production_version(many, name))
    one = models.held_bytes // len(NAMES)
    small = loaded(many, max_bytes=2 * one)
    for name in ("bobbin", "heddle", "bobbin", "reed"):
        small.score([ask(many, name)])
    assert [category for category, _ in small.held] == ["bobbin", "reed"]
    assert (small.evicted, small.held_bytes) == (1, 2 * one)
    tiny = loaded(many, max_bytes=1)
    tiny.score([ask(many, "bobbin")])
    assert len(tiny.held) == 1  # the last one, whatever its size


def test_no_answer_is_of_another_category_while_models_come_and_go(many: str) -> None:
    right = {name: loaded(many).score([ask(many, name)])[0].score for name in NAMES}
    assert right["bobbin"] != right["heddle"]
    small = loaded(many, max_bytes=1)
    order = np.random.default_rng(0).choice(NAMES, 60)
    assert [small.score([ask(many, name)])[0].score for name in order] == [
        right[name] for name in order]
    assert small.evicted > 30


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.booleans()), min_size=1,
                max_size=9))
def test_asks_of_any_models_are_answered_each_by_its_own(many: str, wanted) -> None:
    models = _kept(many)
    asks = [ask(many, name, seed, b"short" if bad else None) for name, seed, bad in wanted]
    answers = asyncio.run(LocalScorers(models).score_many(asks))
    for asked, (_, _, bad), answer in zip(asks, wanted, answers, strict=True):
        if bad:
            assert isinstance(answer, DataError)
        else:
            assert not isinstance(answer, IgdError)
            assert answer.score == models.score([asked])[0].score


def _kept(many: str, kept: dict[str, Models] = {}) -> Models:  # noqa: B006
    """Models of which a forward takes four images, loaded once."""
    return kept.setdefault(many, loaded(many, batch=4))


def test_a_version_that_is_not_there_is_refused(many: str) -> None:
    with pytest.raises(ModelError):
        loaded(many).open("reed", "20260101T000000000-00000000")
