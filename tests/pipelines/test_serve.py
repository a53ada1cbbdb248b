"""One image through the Python API, a batch run and the endpoint: the same bits."""

from __future__ import annotations

import socket
import time

import httpx
import pytest

from igd import tables
from igd.data.images import decode
from igd.data.routing import Routing
from igd.pipelines.score import score
from igd.pipelines.serve import Listen, running
from igd.score.scorer import Scorer
from igd.serve.config import EndpointConfig


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_python_batch_and_endpoint_give_equal_bits(cluster, asked, tiny_data, tiny_models) -> None:
    folder = tiny_data / "weave" / "test"
    wanted = asked(str(folder), routing=Routing(category="weave"))
    score(wanted)
    batch = {row["sha256"]: row for row in
             tables.read(wanted.out, "scores", wanted.date).to_pylist()}
    scorer = Scorer.load(f"{tiny_models}/weave")
    config = EndpointConfig(models=str(tiny_models), drain_s=0.1)
    with running(config, Listen(port=free_port())) as url:
        wait_until_ready(url)
        paths = sorted(folder.rglob("*.png"))
        for path in paths:
            data = path.read_bytes()
            reply = httpx.post(f"{url}/v1/categories/weave/score", content=data,
                               timeout=60).json()
            row = batch[reply["sha256"]]
            direct = scorer.score([decode(data, max_pixels=10**7)])
            assert reply["score"] == row["score"] == direct.scores[0]
            for key in ("p_value", "decision", "threshold", "alpha", "model_version",
                        "score_fingerprint", "regions"):
                assert reply[key] == row[key], key
            assert all(row[name] == term for name, term in reply["terms"].items())
        assert len(batch) == len(paths)
