"""What Ray Serve's own proxy gets to see of a request. Runs in that proxy, ahead of Serve.

Serve lets any client say how long its proxy waits and whether it minds that the client has gone,
fails (500) where such a header is not UTF-8, tells everybody at /-/routes what runs, and takes in
as much of a body as comes, however little of it is asked for. `/-/healthz`, which KubeRay asks for
and which says nothing, stays.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=igd.serve.door.middlewares
"""

from __future__ import annotations

import asyncio
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from igd.serve.config import EndpointConfig
from igd.serve.faults import Fault
from igd.serve.guard import REQUEST_ID, body_limit, error_body

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "igd.serve.door.middlewares"
STEERING = {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id",
            b"serve-multiplexed-model-id"}
"""Headers for Serve, whose names it takes with `_` for `-` too."""
HEALTH = "/-/healthz"


def middlewares() -> list[Middleware]:
    """What Serve's proxy is to put around itself."""
    return [Middleware(Door)]


class Door:
    """The outermost layer of the proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        if path.startswith("/") and (not path.startswith("/-/") or path == HEALTH):
            headers = [(name, value) for name, value in scope["headers"] if _harmless(name, value)]
            body = _no_more_than(body_limit(EndpointConfig, path), receive)
            await self._app({**scope, "headers": headers}, body, send)
        else:
            await _not_found(send)


def _harmless(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return name.replace(b"_", b"-") not in STEERING


def _no_more_than(limit: int, receive: Receive) -> Receive:
    """A body to just over the limit: the endpoint has what it will refuse by then."""
    seen = 0

    async def receive_some() -> Message:
        nonlocal seen
        if seen > limit:
            await asyncio.Event().wait()
        message = await receive()
        seen += len(message.get("body", b""))
        return message

    return receive_some


async def _not_found(send: Send) -> None:
    request_id = uuid.uuid4().hex
    body = error_body(Fault(status=404, code="not_found", message="Not Found"), request_id)
    await send({"type": "http.response.start", "status": 404, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"), (b"x-request-id", request_id.encode())]})
    await send({"type": "http.response.body", "body": body})
