"""Fixtures shared by several folders of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from igd.config import preset_config
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec AD tree of two synthetic products, 64 px, for reading only."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    generate(str(root), categories=["weave", "washer"], train=24, test=6, defective=2, size=64)
    return root


@pytest.fixture(scope="session")
def tiny_models(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a `fast` model of both products, for reading only."""
    root = tmp_path_factory.mktemp("tiny") / "models"
    config = preset_config("fast", ["image.size=64", "calibration.folds=4"])
    for category in ("weave", "washer"):
        train_category(CategoryTask(data=str(tiny_data), category=category, models=str(root),
                                    config=config))
    return root
