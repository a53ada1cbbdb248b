"""The endpoint on Ray Serve: the bits of a batch run, and no failed request whatever happens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from endpoints import SCORE, Load, free_port, replicas_below, wait_until_ready
from serving import another_version, damage
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from igd import registry, tables
from igd.data.images import decode
from igd.data.routing import Routing
from igd.errors import ConfigError
from igd.pipelines import serve as pipeline
from igd.pipelines.score import score
from igd.pipelines.serve import Listen, Replicas, app, connections, hang_up, running, take_no_more
from igd.registry import production
from igd.score.scorer import Scorer
from igd.serve.config import EndpointConfig


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry that tests of this module promote in."""
    root = tmp_path_factory.mktemp("serve") / "models"
    shutil.copytree(tiny_models, root)
    return str(root)


@pytest.fixture(scope="module")
def url(cluster, models: str) -> Iterator[str]:
    """An endpoint with two scorers on the cluster of the session."""
    config = EndpointConfig(models=models, follow_s=0.2, drain_s=0.1)
    with running(config, Listen(port=free_port()), Replicas(scorers=(2, 2))) as url:
        wait_until_ready(url)
        yield url


@pytest.fixture(scope="module")
def image(tiny_data: Path) -> bytes:
    return min((tiny_data / "weave" / "test").glob("[!g]*/*.png")).read_bytes()


@pytest.mark.timeout(120)
def test_an_ingress_ahead_asks_another_scorer_where_one_is_killed(
        cluster, models: str, image: bytes) -> None:
    config = EndpointConfig(models=models, drain_s=0.1)
    with running(config, Listen(port=free_port()), Replicas(scorers=(2, 2), ingress=2)) as url:
        wait_until_ready(url)
        answers = answers_around_a_kill(url, "Scorer", image)
    direct = Scorer.load(f"{models}/weave").score([decode(image, max_pixels=10**7)])
    assert {(status, score) for status, _, score in answers} == {(200, direct.scores[0])}, answers


@pytest.mark.timeout(180)
def test_python_batch_and_endpoint_give_equal_bits(url, asked, tiny_data, models) -> None:
    folder = tiny_data / "weave" / "test"
    wanted = asked(str(folder), routing=Routing(category="weave"), models=models)
    score(wanted)
    batch = {row["sha256"]: row for row in
             tables.read(wanted.out, "scores", wanted.date).to_pylist()}
    scorer = Scorer.load(f"{models}/weave")
    paths = sorted(folder.rglob("*.png"))
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    together = httpx.post(f"{url}{SCORE}-batch", files=files, timeout=60).json()
    for path, one_of_many in zip(paths, together["results"], strict=True):
        data = path.read_bytes()
        reply = httpx.post(url + SCORE, content=data, timeout=60).json()
        row = batch[reply["sha256"]]
        direct = scorer.score([decode(data, max_pixels=10**7)])
        assert reply["score"] == row["score"] == direct.scores[0]
        for key in ("p_value", "decision", "threshold", "alpha", "model_version",
                    "score_fingerprint", "regions"):
            assert reply[key] == one_of_many["result"][key] == row[key], key
        assert all(row[name] == term for name, term in reply["terms"].items())
    assert len(batch) == len(paths)


@pytest.mark.timeout(120)
def test_a_promotion_under_load_costs_no_request(url: str, models: str, image: bytes) -> None:
    first = registry.production_version(models, "weave")
    second, broken = another_version(models, "weave"), another_version(models, "weave")
    with Load(url, image) as load:
        load.wait_for(10)
        registry.promote(models, "weave", second)
        while not any(said[1] == second for said in load.answers):
            load.wait_for(1)
        damage(models, "weave", broken)
        production.append(models, "weave", broken, "by hand")
        while 'igd_model_stale{category="weave"' not in httpx.get(f"{url}/metrics").text or (
                httpx.get(f"{url}/readyz").json()["categories"]["weave"] != "stale"):
            load.wait_for(1)
        load.wait_for(10)
        registry.rollback(models, "weave")
        while httpx.get(f"{url}/readyz").json()["categories"]["weave"] != "ready":
            load.wait_for(1)
    assert {said[0] for said in load.answers} == {200}, load.answers
    assert {said[1] for said in load.answers} == {first, second}


@pytest.mark.timeout(120)
def test_a_killed_scorer_costs_only_the_requests_that_it_had(url: str, image: bytes) -> None:
    answers = answers_around_a_kill(url, "Ingress", image)
    lost = sum(count for (status, *_), count in answers.items() if status != 200)
    assert lost <= Load.clients and {said[0] for said in answers} <= {200, 503}, answers
    assert len({said[2] for said in answers if said[0] == 200}) == 1


def answers_around_a_kill(url: str, kind: str, image: bytes) -> Counter[tuple[object, ...]]:
    """What a load is answered while a replica is killed, and until there is another."""
    with Load(url, image) as load:
        load.wait_for(10)
        before = replicas_below(os.getpid(), kind)
        before[0].kill()
        load.wait_for(30)
        deadline = time.monotonic() + 60
        while len(replicas_below(os.getpid(), kind)) < len(before):
            assert time.monotonic() < deadline
            load.wait_for(1)
        load.wait_for(10)
    return load.answers


@pytest.mark.timeout(180)
def test_an_endpoint_told_to_stop_answers_what_it_has(tiny_models: Path, image: bytes) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "igd.cli", "serve", "--models", str(tiny_models), "--port",
         str(port), "--scorers", "1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url)
        replica, = replicas_below(process.pid, "Ingress")  # whose own port any interface reaches
        assert replica.environ()["RAY_AUTH_MODE"] == "token"
        with Load(url, image, clients=2) as load:
            load.wait_for(5)
            began = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            draining = False
            while process.poll() is None and time.monotonic() - began < 60:
                try:
                    said = httpx.get(f"{url}/readyz")
                    draining = draining or (said.status_code == 503 and said.json()["draining"])
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        assert draining and time.monotonic() - began < 30
    finally:
        process.kill()
        out, said = process.communicate()
    assert process.returncode == 0, said
    assert out == "" or (out.count("\n") == 1 and url in out)  # it may be told before that
    assert "Traceback" not in said
    assert {answer[0] for answer in load.answers} == {200, "ConnectError"}, load.answers


def test_who_has_just_connected_may_ask_once_more(monkeypatch) -> None:
    """Of a proxy that stops: first nobody else gets in, then whoever is in is hung up on."""
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("here")(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), lifespan="off"))
    monkeypatch.setattr(pipeline, "_servers", lambda: [server])
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until_ready(url := f"http://127.0.0.1:{server.config.port}")
    loop, at = server.servers[0].get_loop(), ("127.0.0.1", server.config.port)
    with socket.create_connection(at, 10) as connection:
        loop.call_soon_threadsafe(time.sleep, 0.3)  # busy, so that it lets nobody in
        take_no_more(None)
        with socket.create_connection(at, 10) as queued:
            queued.sendall(ask := b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
            assert queued.recv(1 << 12).startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 10
        with pytest.raises(httpx.TransportError):
            while time.monotonic() < deadline:
                httpx.get(url)
        connection.sendall(ask)
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200")
        assert connections(None) >= 1 and thread.is_alive()
        while hang_up(None):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    thread.join(10)
    assert not thread.is_alive()


def test_metrics_are_those_of_every_replica(url: str, image: bytes) -> None:
    for _ in range(6):
        assert httpx.post(url + SCORE, content=image, timeout=60).status_code == 200
    pages = [httpx.get(f"{url}/metrics").text for _ in range(3)]
    for page in pages:
        lines = page.splitlines()
        assert sum(line.startswith("igd_models_held{") for line in lines) == 2
        assert sum(line.startswith("igd_images_in_flight{") for line in lines) == 2
        assert any(line.startswith("igd_refused_total{") for line in lines)
        assert page.count("# TYPE igd_images_scored_total counter") == 1
    scored = {sum(float(line.rpartition(" ")[2]) for line in page.splitlines()
                  if line.startswith("igd_images_scored_total{")) for page in pages}
    assert len(scored) == 1 and scored.pop() >= 6  # whichever ingress was asked


def test_a_body_that_is_too_large_is_told_so_to_a_client_that_sends_it_all(url: str) -> None:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(url + SCORE, content=bytes(3 * EndpointConfig.max_body_bytes))

    async def many() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(ask(client) for _ in range(2)))

    replies = asyncio.run(many())
    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == (
        2 * [(413, "body_too_large")])


def test_a_taken_port_and_a_second_endpoint_are_refused(url: str, models: str) -> None:
    config = EndpointConfig(models=models)
    with pytest.raises(ConfigError, match="--port"), running(
            config, Listen(port=int(url.rpartition(":")[2]))):
        raise AssertionError
    with pytest.raises(ConfigError, match="already"), running(config, Listen(port=free_port())):
        raise AssertionError


def test_the_application_of_a_config_file_wants_tokens_or_a_word(models: str, tmp_path: Path,
                                                                 monkeypatch) -> None:
    monkeypatch.delenv("IGD_SERVE_TOKENS", raising=False)
    with pytest.raises(ConfigError, match="anybody_may_ask"):
        app({"models": models})
    (tmp_path / "tokens").write_text("line-3:0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    application = app({"models": models, "tokens_file": str(tmp_path / "tokens"),
                       "hosts": ["scores.factory"], "max_scorers": 4})
    config = application._bound_deployment.init_args[0]
    assert [token.name for token in config.tokens] == ["line-3"]
    assert "0123456789abcdef" not in repr(config) and "scores.factory" in config.hosts
    assert config.in_flight == 8
    with pytest.raises(ConfigError, match="modles"):
        app({"models": models, "modles": "x"})
