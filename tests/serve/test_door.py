"""What gets through to Ray Serve's proxy, and back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from igd.serve import door
from igd.serve.config import EndpointConfig


def through(path: str = "/", *headers: tuple[bytes, bytes], kind: str = "http"
            ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The scopes that the proxy sees of a request, and what is sent back."""
    seen: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message: Any) -> None:
        sent.append(message)

    middleware, = door.middlewares()
    scope = {"type": kind, "path": path, "headers": list(headers)}
    asyncio.run(middleware.cls(proxy)(scope, None, send))  # type: ignore[call-arg]
    return seen, sent


def test_serve_finds_it_by_its_name() -> None:
    found = call_function_from_import_path(door.CALLBACK)
    assert [one.cls for one in validate_http_proxy_callback_return(found)] == [door.Door]


@pytest.mark.parametrize("name", [
    b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id", b"x-session-id", b"x_session_id"])
def test_no_client_steers_serve(name: bytes) -> None:
    seen, _ = through("/", (name, b"\xff"), (b"accept", b"\xff"))
    assert seen[0]["headers"] == [(b"accept", b"\xff")]


@pytest.mark.parametrize(("given", "kept"), [(b"line-7", True), (b"\xff", False), (b"", False),
                                             (b"a b", False), (b"a" * 65, False)])
def test_a_request_id_that_is_none_goes_no_further(given: bytes, kept: bool) -> None:
    seen, _ = through("/", (b"x-request-id", given))
    assert seen[0]["headers"] == ([(b"x-request-id", given)] if kept else [])


@pytest.mark.parametrize("path", ["/-/routes", "/-/", "/-/healthz/", "/-/healthz/../routes", "*",
                                  "", "healthz", "http://x/"])
def test_what_serve_tells_of_itself_is_not_there(path: str) -> None:
    seen, sent = through(path)
    assert seen == [] and sent[0]["status"] == 404
    assert set(json.loads(sent[1]["body"])) == {"error", "code", "request_id"}


@pytest.mark.parametrize(("path", "limit"), [
    ("/v1/categories/weave/score", EndpointConfig.max_body_bytes),
    ("/", EndpointConfig.max_body_bytes),
    ("/v1/categories/weave/score-batch", EndpointConfig.max_batch_bytes)])
def test_of_a_body_only_what_may_be_asked_for_is_taken_in(path: str, limit: int) -> None:
    taken = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        while True:  # as Serve's does
            taken.append(len((await receive())["body"]))

    async def run() -> None:
        scope = {"type": "http", "path": path, "headers": []}
        async with asyncio.timeout(1):
            await door.Door(proxy)(scope, receive, None)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert sum(taken) == limit + 2**20


def test_kuberay_is_told_that_the_proxy_is_well() -> None:
    assert through("/-/healthz")[0] and through("/v1/-/x")[0]


def test_no_websocket_reaches_serve() -> None:
    seen, sent = through(kind="websocket")
    assert seen == [] and sent == [{"type": "websocket.close", "code": 1008}]
