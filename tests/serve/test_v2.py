"""The Open Inference Protocol: Triton's own client, and whatever else is sent there."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import TestClient, another_version, damage, endpoint_of

from igd import __version__
from igd.registry import production
from igd.serve import v2
from igd.serve.app import create_app
from igd.serve.config import EndpointConfig
from igd.serve.models import Answer, Ask
from igd.serve.tensors import HEADER_LENGTH, JSON_VALUES

MODEL = "/v2/models/weave"
INFER = f"{MODEL}/infer"
V1 = "/v1/categories/weave/score"
LIMIT = 400_000
PLAIN = ["score", "p_value", "threshold", "decision", "terms.dense_distance",
         "terms.pooled_distance"]


@pytest.fixture(scope="module")
def client(serve) -> TestClient:
    return serve(fpr=0.04, review_fpr=0.2, max_body_bytes=LIMIT, max_batch_images=3)


@pytest.fixture(scope="module")
def address(tiny_models: Path) -> Iterator[str]:
    """Host and port of an endpoint behind a real server."""
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models), follow_s=3600))
    server = uvicorn.Server(uvicorn.Config(create_app(endpoint), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not (server.started and endpoint.catalogue.settled):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    yield f"{host}:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


@pytest.fixture(scope="module")
def triton() -> Any:
    return pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


def refused(reply: Any, status: int = 400, code: str = "invalid_request") -> str:
    """Checks the one shape of errors, and that nothing of the inside shows."""
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert set(reply.json()) == {"error", "code", "request_id"}
    assert not re.search(r"Traceback|\.py|/tmp|pydantic|safetensors", reply.text)
    return str(reply.json()["error"])


def files(*data: bytes, **more: Any) -> dict[str, Any]:
    """A request with image files in JSON."""
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)],
                        "data": [base64.b64encode(file).decode() for file in data]}]} | more


def post_binary(client: TestClient, request: dict[str, Any], behind: bytes,
                length: object = None) -> Any:
    text = json.dumps(request).encode()
    return client.post(INFER, content=text + behind, headers={
        HEADER_LENGTH: str(len(text) if length is None else length)})


def sent(datatype: str, shape: list[int], size: int, **more: Any) -> dict[str, Any]:
    """A request whose tensor is behind the JSON."""
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": shape,
                        "parameters": {"binary_data_size": size}}]} | more


def test_tritons_client_finds_server_and_model(address: str, triton: Any,
                                               tiny_models: Path) -> None:
    version = production.in_use(str(tiny_models), "weave").version
    with triton.InferenceServerClient(address) as asking:
        assert asking.is_server_live() and asking.is_server_ready()
        assert asking.get_server_metadata() == {
            "name": "igd-ray", "version": __version__, "extensions": ["binary_tensor_data"]}
        assert asking.is_model_ready("weave") and asking.is_model_ready("weave", version)
        assert not asking.is_model_ready("bottle") and not asking.is_model_ready("weave", "1")
        found = asking.get_model_metadata("weave")
        assert found == asking.get_model_metadata("weave", version)
    assert (found["name"], found["versions"], found["platform"]) == ("weave", [version], "igd_ray")
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"] == [
        *({"name": name, "datatype": "BYTES" if name == "decision" else "FP64", "shape": [-1]}
          for name in PLAIN), {"name": "heatmap", "datatype": "FP32", "shape": [-1, 64, 64]}]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("kind", ["BYTES", "UINT8"])
def test_tritons_client_gets_the_bits_of_v1(address: str, triton: Any, picture: bytes,
                                            pixels: np.ndarray, kind: str, binary: bool) -> None:
    upside_down = io.BytesIO()
    Image.fromarray(pixels[::-1]).save(upside_down, "PNG")
    pictures = [picture, upside_down.getvalue()]
    if kind == "UINT8":
        values = np.stack([pixels, pixels[::-1]])
    elif binary:
        values = np.array(pictures, object)
    else:
        values = np.array([base64.b64encode(file) for file in pictures], object)
    image = triton.InferInput("image", list(values.shape), kind)
    image.set_data_from_numpy(values, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary)
               for name in ["heatmap", *PLAIN]]
    with triton.InferenceServerClient(address) as asking:
        result = asking.infer("weave", [image], outputs=outputs, request_id="nine")
    expected = [httpx.post(f"http://{address}{V1}", params={"heatmap": "png"}, content=file).json()
                for file in pictures]
    assert expected[0]["score"] != expected[1]["score"]
    said = result.get_response()
    assert (said["id"], said["model_name"]) == ("nine", "weave")
    assert said["model_version"] == expected[0]["model_version"]
    assert [output["name"] for output in said["outputs"]] == ["heatmap", *PLAIN]
    for i, one in enumerate(expected):
        for name in ("score", "p_value", "threshold"):
            assert result.as_numpy(name)[i] == one[name]
        for name, value in one["terms"].items():
            assert result.as_numpy(f"terms.{name}")[i] == value
        decision = result.as_numpy("decision")[i]
        assert (decision if isinstance(decision, str) else decision.decode()) == one["decision"]
        heatmap = result.as_numpy("heatmap")[i]
        assert heatmap.shape == (64, 64) and heatmap.dtype == np.float32
        assert (heatmap.min(), heatmap.max()) == (one["heatmap_min"], one["heatmap_max"])


def test_what_is_not_asked_for_is_all_but_the_heatmap(client: TestClient, picture: bytes) -> None:
    reply = client.post(INFER, json=files(picture)).json()
    assert [output["name"] for output in reply["outputs"]] == PLAIN and "id" not in reply
    assert all(output["shape"] == [1] and len(output["data"]) == 1 for output in reply["outputs"])


def test_each_output_comes_as_it_was_asked_for(client: TestClient, picture: bytes) -> None:
    outputs = [{"name": "decision"}, {"name": "score", "parameters": {"binary_data": False}}]
    reply = client.post(INFER, json=files(
        picture, outputs=outputs, parameters={"binary_data_output": True}))
    length = int(reply.headers[HEADER_LENGTH])
    decision, score = json.loads(reply.content[:length])["outputs"]
    assert decision["parameters"] == {"binary_data_size": len(reply.content) - length}
    text = client.post(V1, content=picture).json()["decision"].encode()
    assert reply.content[length:] == len(text).to_bytes(4, "little") + text
    assert "data" not in decision and "parameters" not in score and len(score["data"]) == 1


def test_pixels_may_be_one_image_and_nested_or_flat(client: TestClient, picture: bytes,
                                                    pixels: np.ndarray) -> None:
    expected = client.post(INFER, json=files(picture)).json()
    for shape, data in ((pixels.shape, pixels.tolist()), (pixels.shape, pixels.ravel().tolist()),
                        ((1, *pixels.shape), [pixels.tolist()])):
        assert client.post(INFER, json={"inputs": [
            {"name": "image", "datatype": "UINT8", "shape": shape, "data": data}],
        }).json() == expected


def test_only_the_version_in_production_answers(client: TestClient, picture: bytes) -> None:
    version = client.get(MODEL).json()["versions"][0]
    reply = client.post(f"{MODEL}/versions/{version}/infer", json=files(picture))
    assert reply.json()["model_version"] == version
    for path, method in (("", "GET"), ("/ready", "GET"), ("/infer", "POST")):
        reply = client.request(method, f"{MODEL}/versions/1{path}")
        assert version in refused(reply, 404, "unknown_version")
        refused(client.request(method, f"/v2/models/bottle{path}"), 404, "unknown_category")


def test_a_request_is_answered_by_one_version_though_another_is_promoted_meanwhile(
        serve, tiny_models: Path, tmp_path: Path, picture: bytes) -> None:
    models = str(tmp_path / "m")
    shutil.copytree(tiny_models, models)
    newer = another_version(models, "weave")
    endpoint = endpoint_of(EndpointConfig(models=models, in_flight=1))
    client, score, asked = serve(endpoint), endpoint.scorers.score, []

    async def promote_and_score(ask: Ask) -> Answer:
        asked.append(ask.version)
        if len(asked) == 1:
            production.append(models, "weave", newer, "test")
            await endpoint.catalogue.look()
        return await score(ask)

    endpoint.scorers.score = promote_and_score
    before = client.get(MODEL).json()["versions"]
    reply = client.post(INFER, json=files(picture, picture)).json()
    assert [reply["model_version"]] == before and asked == 2 * before
    assert client.get(MODEL).json()["versions"] == [newer]


def test_readiness_is_that_of_readyz(serve, tiny_models: Path, tmp_path: Path) -> None:
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models)))
    client = serve(endpoint)
    assert client.get("/v2/health/ready").json() == {"ready": True}
    endpoint.draining = True
    for path in ("/v2/health/ready", "/readyz"):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["ready"]) == (503, False)
    assert client.get("/v2/health/live").json() == {"live": True}

    shutil.copytree(tiny_models, tmp_path / "m")
    damage(str(tmp_path / "m"), "weave", client.get(MODEL).json()["versions"][0])
    client = serve(models=str(tmp_path / "m"))
    refused(client.get(f"{MODEL}/ready"), 503, "not_ready")
    assert client.get("/v2/models/washer/ready").json() == {"name": "washer", "ready": True}


def test_one_image_that_cannot_be_used_fails_the_request_and_is_named(
        client: TestClient, picture: bytes, pixels: np.ndarray) -> None:
    for bad, reason in ((b"", "empty"), (b"hello", "not_image"), (picture[:-200], "truncated")):
        reply = client.post(INFER, json=files(picture, bad, picture))
        assert "image 1: " in refused(reply, 422, reason)
    thin = np.ascontiguousarray(pixels[:7])
    reply = post_binary(client, sent("UINT8", [1, *thin.shape], thin.size), thin.tobytes())
    assert "image 0: 160x7 px" in refused(reply, 422, "too_small")


def test_pixels_beyond_the_limit_of_the_model_are_refused(serve, tiny_models: Path) -> None:
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models)))
    client = serve(endpoint)
    card = endpoint.catalogue.card("weave")
    small = replace(card, image=replace(card.image, max_pixels=99))
    endpoint.catalogue.card = lambda category: small
    reply = post_binary(client, sent("UINT8", [10, 10, 3], 300), bytes(300))
    assert "image 0: 10x10 px; at most 99 pixels" in refused(reply, 422, "too_large")


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192}


@pytest.mark.parametrize(("tensor", "said"), [
    (IMAGE | {"name": "picture"}, "inputs.0.name"),
    (IMAGE | {"datatype": "FP32"}, "inputs.0.datatype"),
    (IMAGE | {"datatype": None}, "inputs.0.datatype"),
    (IMAGE | {"shape": [2]}, "1 elements; expected 2"),
    (IMAGE | {"shape": [1, 1]}, "expected [N]"),
    (IMAGE | {"shape": []}, "inputs.0.shape"),
    (IMAGE | {"shape": [0], "data": []}, "inputs.0.shape.0"),
    (IMAGE | {"shape": [-1]}, "inputs.0.shape.0"),
    (IMAGE | {"shape": [1.0]}, "inputs.0.shape.0"),
    (IMAGE | {"shape": [True]}, "inputs.0.shape.0"),
    (IMAGE | {"shape": ["1"]}, "inputs.0.shape.0"),
    (IMAGE | {"shape": [1 << 63]}, "inputs.0.shape.0"),
    (IMAGE | {"shape": [1 << 62]}, "expected at most 3"),
    (IMAGE | {"shape": [4], "data": ["aGVsbG8="] * 4}, "4 images; expected at most 3"),
    (IMAGE | {"data": "aGVsbG8="}, "inputs.0.data"),
    (IMAGE | {"data": ["a"]}, "element 0 is not"),
    (IMAGE | {"data": ["aGVs bG8="]}, "element 0 is not"),
    (IMAGE | {"data": ["\ud800"]}, "element 0 is not"),
    (IMAGE | {"data": [7]}, "element 0 is not"),
    (IMAGE | {"data": [["aGVsbG8="]]}, "element 0 is not"),
    (IMAGE | {"parameters": {"binary_data_size": 9}}, "either data or"),
    ({"name": "image", "datatype": "BYTES", "shape": [1]}, "either data or"),
    (IMAGE | {"parameters": {"shared_memory_region": "x"}}, "shared memory"),
    (PIXELS | {"shape": [192]}, "expected [N, H, W, 3]"),
    (PIXELS | {"shape": [1, 3, 8, 8]}, "expected [N, H, W, 3]"),
    (PIXELS | {"shape": [1, 1, 8, 8, 3]}, "inputs.0.shape"),
    (PIXELS | {"shape": [1, 8, 9, 3]}, "whole numbers"),
    (PIXELS | {"shape": [3, 1 << 62, 1 << 62, 3]}, "whole numbers"),
    (PIXELS | {"data": [256] + [7] * 191}, "whole numbers"),
    (PIXELS | {"data": [-1] + [7] * 191}, "whole numbers"),
    (PIXELS | {"data": [7.5] + [7] * 191}, "whole numbers"),
    (PIXELS | {"data": ["7"] * 192}, "whole numbers"),
    (PIXELS | {"data": [7] * 191 + [[7]]}, "whole numbers"),
    (PIXELS | {"data": [[7] * 192]}, "whole numbers"),
    (PIXELS | {"data": []}, "whole numbers"),
    (PIXELS | {"data": 192}, "inputs.0.data"),
])
def test_a_tensor_that_is_not_what_it_says_is_400(client: TestClient, tensor: dict[str, Any],
                                                  said: str) -> None:
    assert said in refused(client.post(INFER, content=json.dumps({"inputs": [tensor]})))


@pytest.mark.parametrize(("body", "said"), [
    ("", "expected JSON"), ("[]", "dictionary"), ("{}", "inputs"), ("null", "dictionary"),
    ("{'inputs': 1}", "expected JSON"), (b"\xff\xfe{}", "expected JSON"),
    ('{"inputs": NaN}', "expected JSON"), ('{"a": -Infinity}', "expected JSON"),
    ("9" * 5000, "expected JSON"), ("[" * 100_000, "too deeply"), ('{"a":' * 50_000, "too deeply"),
    ('{"inputs": "image"}', "inputs"), ('{"inputs": []}', "inputs"),
    ({"inputs": [IMAGE, IMAGE]}, "inputs"), ({"inputs": [IMAGE], "id": 7}, "id"),
    ({"inputs": [IMAGE], "outputs": {}}, "outputs"),
    ({"inputs": [IMAGE], "outputs": ["score"]}, "outputs.0"),
    ({"inputs": [IMAGE], "outputs": [{"name": "logits"}]}, "expected some of score, p_value"),
    ({"inputs": [IMAGE], "outputs": [{"name": "score"}] * 2}, "named twice"),
    ({"inputs": [IMAGE], "outputs": [{"name": "score"}] * 65}, "outputs"),
    ({"inputs": [IMAGE], "outputs": [{"name": "score", "parameters": {"classification": 1}}]},
     "classification"),
    ({"inputs": [IMAGE], "outputs": [{"name": "score", "parameters": {
        "shared_memory_region": "x"}}]}, "shared memory"),
    ({"inputs": [IMAGE], "parameters": {"binary_data_output": "yes"}},
     "parameters.binary_data_output"),
])
def test_a_body_that_is_no_request_is_400(client: TestClient, body: Any, said: str) -> None:
    content = json.dumps(body) if isinstance(body, dict) else body
    assert said in refused(client.post(INFER, content=content))


@pytest.mark.parametrize("length", ["0", "-1", "+9", "9.0", "1e2", "x", "", " ", "10000", "9" * 30,
                                    "0x9"])
def test_a_header_length_that_is_none_is_400(client: TestClient, length: str) -> None:
    reply = post_binary(client, sent("BYTES", [1], 9), b"\5\0\0\0hello", length)
    assert HEADER_LENGTH in refused(reply)


@pytest.mark.parametrize(("size", "behind", "said"), [
    (9, b"", "0 bytes behind the JSON"), (9, b"\5\0\0\0hello!", "10 bytes behind the JSON"),
    (3, b"\5\0\0", "ends within element 0"), (8, b"\5\0\0\0hell", "ends within element 0"),
    (8, b"\xff\xff\xff\xffhell", "ends within element 0"),
    (10, b"\5\0\0\0hello!", "goes on after element 0"),
])
def test_binary_data_that_is_not_as_long_as_it_says_is_400(client: TestClient, size: int,
                                                           behind: bytes, said: str) -> None:
    assert said in refused(post_binary(client, sent("BYTES", [1], size), behind))


def test_a_compressed_body_is_refused(client: TestClient, picture: bytes) -> None:
    body = gzip.compress(json.dumps(files(picture)).encode())
    reply = client.post(INFER, content=body, headers={"content-encoding": "gzip"})
    assert "compressed" in refused(reply)


def test_json_is_limited_in_bytes_and_in_values(serve, client: TestClient) -> None:
    long = json.dumps({"inputs": [IMAGE | {"data": ["A" * LIMIT]}]})
    refused(client.post(INFER, content=long), 413, "body_too_large")
    request = {"inputs": [IMAGE], "id": "x" * LIMIT}
    assert f"more than {LIMIT} bytes of JSON" in refused(post_binary(client, request, b""))
    for unit in ("7", "[]", "{}", '{"":0}'):
        units = ",".join([unit] * (JSON_VALUES // (1 + sum(unit.count(c) for c in "[{:")) + 1))
        reply = serve().post(INFER, content=f'{{"inputs": [], "more": [{units}]}}')
        assert f"more than {JSON_VALUES} values" in refused(reply)


def test_a_large_heatmap_comes_as_binary_data_only(client: TestClient, picture: bytes,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2, "JSON_PIXELS", 2 * 64 * 64)
    wanted = files(picture, picture, outputs=[{"name": "heatmap"}])
    assert client.post(INFER, json=wanted).status_code == 200
    wanted = files(picture, picture, picture, outputs=[{"name": "heatmap"}])
    assert "binary data only" in refused(client.post(INFER, json=wanted))
    wanted["outputs"][0]["parameters"] = {"binary_data": True}
    assert client.post(INFER, json=wanted).status_code == 200


def test_a_full_endpoint_refuses_and_a_failed_request_gives_its_places_back(
        serve, tiny_models: Path, picture: bytes) -> None:
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models), in_flight=2))
    client = serve(endpoint)
    with endpoint.gate.enter(2):
        reply = client.post(INFER, json=files(picture))
        assert "busy" in refused(reply, 503, "overloaded") and reply.headers["retry-after"]
    with endpoint.reading.enter(endpoint.reading.places):
        refused(client.post(INFER, json=files(picture)), 503, "overloaded")
    refused(client.post(INFER, json=files(picture, b"", picture)), 422, "empty")
    refused(client.post(INFER, json={}))
    assert (endpoint.gate.taken, endpoint.reading.taken) == (0, 0)


def test_images_of_a_request_take_all_places_but_one(
        serve, tiny_models: Path, picture: bytes) -> None:
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models), in_flight=3))
    client, score, running, most = serve(endpoint), endpoint.scorers.score, 0, 0

    async def count_and_score(ask: Ask) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        answer = await score(ask)
        running -= 1
        return answer

    endpoint.scorers.score = count_and_score
    reply = client.post(INFER, json=files(*[picture] * 5))
    assert len(reply.json()["outputs"][0]["data"]) == 5 and most == 2


def test_a_batch_beyond_the_limit_of_one_image_is_taken_with_and_without_a_version(
        client: TestClient, pixels: np.ndarray) -> None:
    version = client.get(MODEL).json()["versions"][0]
    values = np.zeros((1, 400, 400, 3), np.uint8)
    assert values.size > LIMIT
    for model in (MODEL, f"{MODEL}/versions/{version}"):
        text = json.dumps(sent("UINT8", list(values.shape), values.size)).encode()
        reply = client.post(f"{model}/infer", content=text + values.tobytes(),
                            headers={HEADER_LENGTH: str(len(text))})
        assert reply.status_code == 200


def test_labels_of_metrics_are_routes_and_known_categories(client: TestClient) -> None:
    client.get("/v2/models/no-such-model/versions/no-such-version/ready")
    text = client.get("/metrics").text
    assert "no-such" not in text and (
        'igd_requests_total{category="_unknown",code="404",replica="' in text)
    assert 'route="/v2/models/{category}/versions/{version}/ready"' in text


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["image", "BYTES", "UINT8", "score", "heatmap", "aGVsbG8="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["name", "datatype", "shape", "data", "parameters", "binary_data_size", "binary_data",
         "inputs", "outputs", "id"]), inner, max_size=4), max_leaves=12)


@st.composite
def almost_requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request in which one or two things are something else."""
    tensor = dict(draw(st.sampled_from([IMAGE, PIXELS, sent("BYTES", [1], 9)["inputs"][0]])))
    request = {"inputs": [tensor], "outputs": [{"name": "score"}], "parameters": {}, "id": "x"}
    for part in draw(st.lists(st.sampled_from([tensor, request, request["outputs"][0]]),
                              min_size=1, max_size=2)):
        part[draw(st.sampled_from([*part, "parameters"]))] = draw(ANY_JSON)
    return request


@settings(deadline=None, max_examples=150,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=(almost_requests() | ANY_JSON).map(lambda value: json.dumps(value).encode())
       | st.binary(max_size=99), behind=st.binary(max_size=20) | st.just(b"\5\0\0\0hello"),
       length=st.none() | st.just("right") | st.text(st.characters(
           min_codepoint=33, max_codepoint=126), max_size=4))
def test_garbage_is_never_the_fault_of_the_endpoint(client: TestClient, body: bytes, behind: bytes,
                                                    length: str | None) -> None:
    headers = {} if length is None else {
        HEADER_LENGTH: str(len(body)) if length == "right" else length}
    reply = client.post(INFER, content=body + (behind if headers else b""), headers=headers)
    assert reply.status_code in (200, 400, 422), reply.text
    if reply.status_code != 200:
        refused(reply, reply.status_code, reply.json()["code"])


def test_the_document_describes_every_route_and_its_examples_are_taken(
        client: TestClient, picture: bytes) -> None:
    document = client.get("/openapi.json").json()
    for suffix in ("", "/versions/{version}"):
        path = document["paths"][f"/v2/models/{{category}}{suffix}/infer"]["post"]
        assert ("version" in [p["name"] for p in path["parameters"]]) == bool(suffix)
        content = path["requestBody"]["content"]
        assert {"application/json", "application/octet-stream"} == content.keys()
        assert "$ref" not in json.dumps(content)
        examples = content["application/json"]["examples"]
        pixels, encoded = examples["pixels"]["value"], examples["files"]["value"]
        for example in (pixels, encoded):
            jsonschema.validate(example, content["application/json"]["schema"])
        assert client.post(INFER, json=pixels).status_code == 200
        encoded["inputs"][0]["data"] = [base64.b64encode(picture).decode()]
        reply = client.post(INFER, json=encoded).json()
        jsonschema.validate(reply, path["responses"]["200"]["content"]["application/json"]
                            ["schema"] | {"components": document["components"]})
