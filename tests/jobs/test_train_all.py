"""Jobs submitted to a Ray head with token authentication, as a user submits them."""

from __future__ import annotations

import contextlib
import json
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
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd import registry, storage
from igd.data.synthetic import generate

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-0123456789abcdef"
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 5


@pytest.fixture(scope="module")
def head(seaweedfs: str) -> Iterator[str]:
    """The address of a head's job server, which asks for a token.

    It has the keys of the S3 server, and not its address.
    """
    folder = tempfile.mkdtemp(prefix="igd-head-", dir="/tmp")  # a socket's path is short
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with open(Path(folder, "log"), "wb") as log:
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.2",
             "--dashboard-host=127.0.0.1", *(f"--{name}={port}" for name, port in ports.items()),
             "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=4", f"--temp-dir={folder}",
             f"--object-store-memory={200_000_000}", "--disable-usage-stats"],
            env=environment(TOKEN), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_it_answers(process, address, Path(folder, "log"))
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # `ray stop` would stop every Ray of this machine
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def environment(token: str | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("RAY_") and name != "AWS_ENDPOINT_URL"}
    kept |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return kept if token is None else {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def submit(address: str, *words: object, job: str = "train_all", token: str | None = TOKEN,
           timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m",
         f"jobs.{job}", *map(str, words)], cwd=ROOT, env=environment(token), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s)


@pytest.mark.timeout(400)
def test_the_smoke_run_leaves_a_model(head, tmp_path) -> None:
    """With one category instead of two."""
    generate(str(tmp_path / "products"), categories=["weave"], train=12, test=1, defective=1,
             size=128)
    file = tmp_path / "small.yaml"
    text = (ROOT / "jobs" / "train_all.small.yaml").read_text()
    file.write_text(text.replace("/tmp/igd/", f"{tmp_path}/"))
    ran = submit(head, file, timeout_s=300)
    assert ran.returncode == 0, ran.stdout
    assert "1 of 1 categories have a model" in ran.stdout
    assert registry.load_bundle(str(tmp_path / "models"), "weave").preset == "small"


@pytest.mark.timeout(400)
def test_a_night_is_scored_once(head, bucket, tiny_data, tiny_models, tmp_path) -> None:
    """On S3, whose address is an option that the workers are told too."""
    for root, place in ((tiny_models, "models"), (tiny_data / "weave" / "test" / "good",
                                                  "dumps/2026/0102/weave")):
        for path in (path for path in root.rglob("*") if path.is_file()):
            storage.write_bytes(f"{bucket}/{place}/{path.relative_to(root)}", path.read_bytes())
    file = tmp_path / "night.yaml"
    file.write_text(f"sources: ['{bucket}/dumps/{{date:%Y/%m%d}}']\nmodels: {bucket}/models\n"
                    f"out: {bucket}/out\ncategory-from: '{{category}}/*'\ncatch-up: 2\n"
                    f"storage-option: ['endpoint={os.environ['AWS_ENDPOINT_URL']}']\n"
                    f"json: {tmp_path}/night.json\n")
    for state in ("published; 6 planned, 6 scored", "already published; 6 planned"):
        ran = submit(head, file, "2026-01-02", job="score_nightly", timeout_s=180)
        assert ran.returncode == 0, ran.stdout
        assert f"-g1: {state}" in ran.stdout
    (found,) = json.loads((tmp_path / "night.json").read_text())
    assert (found["date"], found["already_published"]) == ("2026-01-02", True)


def test_who_has_no_token_or_another_is_refused(head, tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("{}")
    for token in (None, "another-" + TOKEN):
        ran = submit(head, file, token=token)
        assert ran.returncode != 0
        assert "AuthenticationError" in ran.stdout
        assert "submitted" not in ran.stdout


def test_a_job_that_fails_fails_with_the_exit_code_in_sight(head, tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: d\nmodels: m\nsed: 1\n")
    ran = submit(head, file)
    assert ran.returncode == 1
    assert "unknown key 'sed'" in ran.stdout
    assert "failed with exit code 2" in ran.stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
            pytest.fail("the head answers without a token")
        except urllib.error.HTTPError as error:
            error.close()
            assert error.code == 401
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{log.read_text(errors='replace')[-2000:]}")
