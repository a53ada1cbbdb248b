"""The HTTP surface: the bits of a Scorer, limits, and errors that give nothing away."""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import TestClient, endpoint_of

from igd.data.images import decode_heatmap
from igd.score.scorer import Scorer
from igd.serve.config import EndpointConfig

LIMIT = 200_000
URL = "/v1/categories/weave/score"

opened: list[str] = []
watching = False


def _hook(event: str, args: tuple[object, ...]) -> None:
    if watching and event in {"open", "os.scandir", "os.listdir"}:
        opened.append(str(args[0]))


@pytest.fixture
def files_opened() -> Iterator[list[str]]:
    """Every path the process opens or lists during the test."""
    global watching
    if not getattr(_hook, "added", False):
        sys.addaudithook(_hook)  # for good: there is no way to remove one
        _hook.added = True  # type: ignore[attr-defined]
    opened.clear()
    watching = True
    yield opened
    watching = False


@pytest.fixture(scope="module")
def client(serve) -> TestClient:
    return serve(fpr=0.04, review_fpr=0.2, max_body_bytes=LIMIT)


def assert_error(reply, status: int, code: str) -> str:
    """Checks the one shape of errors, and that nothing of the inside shows."""
    assert reply.status_code == status, reply.text
    error = reply.json()
    assert set(error) == {"error", "code", "request_id"} and error["code"] == code
    assert reply.headers["x-request-id"] == error["request_id"] and len(error["request_id"]) == 32
    for secret in ("Traceback", ".py", "/tmp", "models", "safetensors", "bundle.json", "sha256"):
        assert secret not in reply.text
    return str(error["error"])


def test_the_answer_has_the_bits_of_a_scorer(client: TestClient, picture: bytes,
                                             tiny_models: Path) -> None:
    reply = client.post(URL, content=picture)
    assert reply.status_code == 200
    answer = reply.json()
    scorer = Scorer.load(str(tiny_models / "weave"))
    image = np.asarray(Image.open(io.BytesIO(picture)))
    batch = scorer.score([image])
    verdict = scorer.judge(fpr=0.04, review_fpr=0.2).assess(
        float(batch.scores[0]), batch.heatmaps[0], (160, 96))
    assert answer["score"] == batch.scores[0]
    assert answer["terms"] == {name: term[0] for name, term in batch.terms.items()}
    assert (answer["p_value"], answer["decision"]) == (verdict.p_value, verdict.decision)
    assert (answer["alpha"], answer["threshold"]) == (0.04, verdict.threshold)
    assert [tuple(region.values()) for region in answer["regions"]] == [
        (r.x0, r.y0, r.x1, r.y1, r.area, r.peak) for r in verdict.regions]
    assert (answer["width"], answer["height"], answer["preset"]) == (160, 96, "fast")
    assert answer["model_version"] == scorer.bundle.version
    assert answer["score_fingerprint"] == scorer.fingerprint
    assert answer["heatmap"] is None and answer["heatmap_max"] is None


def test_the_heatmap_is_a_png_inside_or_instead_of_the_answer(
        client: TestClient, picture: bytes, tiny_models: Path) -> None:
    answer = client.post(URL, params={"heatmap": "png"}, content=picture).json()
    png, low, high = (base64.b64decode(answer["heatmap"]), answer["heatmap_min"],
                      answer["heatmap_max"])
    expected = Scorer.load(str(tiny_models / "weave")).score(
        [np.asarray(Image.open(io.BytesIO(picture)))])
    found = decode_heatmap(png, low, high)
    assert np.abs(found - expected.heatmaps[0]).max() <= (high - low) / 510 * 1.001 < 1
    assert (low, high) == (expected.heatmaps[0].min(), expected.heatmaps[0].max())

    reply = client.post(URL, content=picture, headers={"accept": "image/png"})
    assert reply.status_code == 200 and reply.headers["content-type"] == "image/png"
    assert reply.content == png
    assert float(reply.headers["x-igd-score"]) == expected.scores[0] == answer["score"]
    assert reply.headers["x-igd-decision"] == answer["decision"]
    assert reply.headers["x-igd-model-version"] == answer["model_version"]


def test_health_and_categories(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {
        "ready": True, "draining": False, "categories": {"washer": "ready", "weave": "ready"}}
    assert client.get("/v1/categories").json()["categories"] == ["washer", "weave"]


def test_an_unknown_category_is_404(client: TestClient, picture: bytes) -> None:
    reply = client.post("/v1/categories/bottle/score", content=picture)
    assert_error(reply, 404, "unknown_category")
    assert_error(client.get("/v1/nothing"), 404, "not_found")
    assert_error(client.get(URL), 405, "method_not_allowed")


@pytest.mark.parametrize("name", [
    "%2e%2e", "..%2fx", "..%2f..%2fetc", "%2e", ".hidden", "weave%2f..%2fwasher", "weave%00",
    "..%5cx", "weave%0a", "x" * 65, "%2fetc%2fpasswd", "%c3%a9", "%ff", "-", "weave%20"])
def test_a_category_that_is_no_name_touches_no_file_outside(
        client: TestClient, picture: bytes, tiny_models: Path, name: str,
        files_opened: list[str]) -> None:
    reply = client.post(f"/v1/categories/{name}/score", content=picture)
    assert reply.status_code == 404
    assert reply.json()["code"] in {"unknown_category", "not_found"}
    assert files_opened == []


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "empty"), (b"hello", "not_image"), (b"<svg/>", "format_not_allowed")])
def test_bytes_that_are_no_image_are_422_with_the_reason(client: TestClient, data: bytes,
                                                         reason: str) -> None:
    assert assert_error(client.post(URL, content=data), 422, reason)


def test_a_cut_image_is_422(client: TestClient, picture: bytes) -> None:
    assert_error(client.post(URL, content=picture[:-200]), 422, "truncated")


def test_an_unknown_heatmap_format_is_422(client: TestClient, picture: bytes) -> None:
    reply = client.post(URL, params={"heatmap": "jpeg"}, content=picture)
    assert "query.heatmap" in assert_error(reply, 422, "invalid_request")


def test_a_declared_length_over_the_limit_is_refused_unread(client: TestClient) -> None:
    reply = client.post(URL, content=b"x", headers={"content-length": str(LIMIT + 1)})
    assert_error(reply, 413, "body_too_large")
    assert_error(client.post(URL, content=b"x" * LIMIT), 422, "not_image")  # the limit itself


def test_a_stream_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * (LIMIT // 4)

    request = client.build_request("POST", URL, content=chunks())
    assert "content-length" not in request.headers
    assert_error(client.send(request), 413, "body_too_large")


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.parquet", "bundle.json",
                                  "production"])
def test_a_damaged_model_is_503_and_others_still_answer(serve, tiny_models: Path, tmp_path: Path,
                                                        picture: bytes, name: str) -> None:
    shutil.copytree(tiny_models, tmp_path / "m")
    path, = (tmp_path / "m" / "weave").glob(
        "production/*.json" if name == "production" else f"*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 128
    path.write_bytes(data)
    client = serve(models=str(tmp_path / "m"))
    assert_error(client.post(URL, content=picture), 503, "not_ready")
    assert client.post("/v1/categories/washer/score", content=picture).status_code == 200
    assert client.get("/readyz").json()["categories"] == {"washer": "ready", "weave": "failed"}


def test_a_fault_of_the_program_is_500_in_the_same_shape(
        serve, tiny_models: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/tmp/secret.py")

    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models)))
    client = serve(endpoint)
    monkeypatch.setattr(endpoint, "score", fail)
    assert_error(client.post(URL, content=picture), 500, "internal_error")
