"""What Ray Serve's own proxy gets to see of a request, and what a client gets to see of Serve. Runs
in that proxy, ahead of Serve.

Images beyond what the endpoint takes on are refused here, where that costs a tenth of what it costs
once Serve has passed a request on: under ten times the load there is time left to score.

Serve lets any client say how long its proxy waits and whether it minds that the client has gone,
fails (500) where such a header is not UTF-8, tells everybody at /-/routes what runs, and takes in
as much of a body as comes, however little of it is asked for. `/-/healthz`, which KubeRay asks for
and which says nothing, stays. What Serve answers by itself, in words of its own (a replica has
died, none is there yet), becomes an error like all others, which clients try again.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=igd.serve.door.middlewares
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from igd.serve.config import EndpointConfig
from igd.serve.faults import Fault, fault_of
from igd.serve.gate import RETRY_AFTER_S, Admission, Budget, OverloadedError
from igd.serve.guard import PLACES, REQUEST_ID, body_limit, error_body
from igd.serve.metrics import ByReplica, of_this_process

log = logging.getLogger(__name__)

CALLBACK = "igd.serve.door.middlewares"
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""Of every process of a cluster: the door, and the settings that Ray documents for throughput."""
STEERING = {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id",
            b"serve-multiplexed-model-id"}
"""Headers for Serve, whose names it takes with `_` for `-` too."""
GRACE_S = 0.05
"""For a body to come in, while its request has a place. Who takes longer has none meanwhile."""
LINGER_S, LINGER_BYTES = 5.0, 1 << 30
"""For a body that is refused to come in, and be forgotten."""
HEALTH = "/-/healthz"
Headers = Iterable[tuple[bytes, bytes]]
SCORE_ROUTE = re.compile(r"/v1/categories/[^/]+/score(-batch)?|"
                         r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
OURS = re.compile(r"/((v1|v2)/.*|healthz|readyz|metrics)?", re.DOTALL)
"""Paths that Serve does not answer by itself, while it can ask the endpoint."""
REGISTRY = CollectorRegistry()
ANSWERED = Counter("igd_requests", "Requests answered.", ["route", "category", "code"],
                   registry=REGISTRY)
REFUSED = Counter("igd_refused", "Requests refused for lack of a place.", registry=REGISTRY)
ROUTE = "_door"
"""The route, in metrics, of what is answered here."""


def middlewares() -> list[Middleware]:
    """What Serve's proxy is to put around itself."""
    return [Middleware(Door)]


def collect(proxy: object) -> ByReplica:
    """Within a proxy: what was answered here."""
    return of_this_process("door", REGISTRY.collect())


class Door:
    """The outermost layer of the proxy.

    Attributes:
        admission: as the endpoint said last; until then, of any number.
        taken: requests for scores that have come in, or may within `GRACE_S`, and which are not
            answered yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.admission, self.taken = app, Admission(), 0
        self.bodies = Budget(EndpointConfig.body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        if not path.startswith("/") or (path.startswith("/-/") and path != HEALTH):
            await _answer(Fault(status=404, code="not_found", message="Not Found",
                                headers={"connection": "close"}), scope["headers"], send)
        elif (scores := SCORE_ROUTE.fullmatch(path) is not None) and not self.admission.admits(
                self.taken, time.monotonic()):
            REFUSED.inc()
            await _answer(fault_of(OverloadedError()), scope["headers"], send)
        else:
            headers = [(name, value) for name, value in scope["headers"] if _harmless(name, value)]
            passage = _Passage(self, scores, path, receive, send)
            try:
                await self._app({**scope, "headers": headers}, passage.receive, passage.send)
            except Exception:  # a server would say 500
                log.exception("Serve's proxy failed")
            finally:
                passage.leave()
            await passage.end()


class _Passage:
    """One request on its way to Serve, and the reply on its way back."""

    def __init__(self, door: Door, scores: bool, path: str, receive: Receive, send: Send) -> None:
        self._door, self._receive, self._send = door, receive, send
        self._scores, self._entered = scores, False
        self._limit, self._seen = body_limit(EndpointConfig, path), 0
        self._may_replace = OURS.fullmatch(path) is not None
        self._held, self._whole, self._lingers = 0, False, False
        self._answered = self._replaced = self._gone = False
        self._enter()
        self._aside = asyncio.get_running_loop().call_later(GRACE_S, self._leave)

    async def receive(self) -> Message:
        """The body, to just over the limit: the endpoint has what it will refuse by then."""
        if self._seen > self._limit:
            await asyncio.Event().wait()
        message = await self._more()
        if self._whole:
            self._aside.cancel()
            self._enter()
        try:
            self._door.bodies.take(more := len(message.get("body", b"")))
        except OverloadedError as error:
            REFUSED.inc()
            await self._replace(fault_of(error), ())
            return {"type": "http.disconnect"}
        self._held += more
        return message

    async def _more(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._gone = message["type"] == "http.disconnect"
        self._whole = not (self._gone or message.get("more_body", False))
        return message

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            headers = message["headers"]
            places = [value for name, value in headers if name == PLACES]
            if places:
                admission = self._door.admission
                admission.at_once, admission.places = map(int, places[0].split())
                message = {**message, "headers": [(name, value) for name, value in headers
                                                  if name != PLACES]}
            elif self._may_replace and message["status"] >= 400:
                await self._replace(_fault_of_serve(message["status"]), headers)
                return
            self._answered, self._lingers = True, (b"connection", b"close") in message["headers"]
        elif not message.get("more_body", False):
            self.leave()  # ahead of the end of the reply: its client may ask again at once
            if self._lingers and not self._whole:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Takes in what is left of a body, so that its client reads the reply.

        A connection that is closed on a client that still sends is reset, and the reply is lost.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not (self._whole or self._gone) and self._seen < LINGER_BYTES:
                    await self._more()

    async def end(self) -> None:
        """Answers where Serve has not, as where a replica dies, to a client that is still there."""
        if not self._answered and not self._gone:
            await self._replace(_fault_of_serve(500), ())

    async def _replace(self, fault: Fault, headers: Headers) -> None:
        self._answered = self._replaced = True
        self.leave()
        await _answer(fault, headers, self._send)

    def leave(self) -> None:
        """Gives back, for good, the place and what is held of the body."""
        self._aside.cancel()
        self._scores = False
        self._leave()
        self._door.bodies.give(self._held)
        self._held = 0

    def _enter(self) -> None:
        if self._scores and not self._entered:
            self._entered = True
            self._door.taken += 1

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._door.taken -= 1


def _harmless(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return name.replace(b"_", b"-") not in STEERING


def _fault_of_serve(status: int) -> Fault:
    """What is told in place of what Serve says by itself."""
    if status in (408, 504):
        return Fault(status=504, code="timeout", message="no answer in time")
    return Fault(status=503, code="unavailable", message="no replica has answered; try again in "
                 f"{RETRY_AFTER_S} s", headers={"retry-after": str(RETRY_AFTER_S)})


async def _answer(fault: Fault, headers: Headers, send: Send) -> None:
    """Sends an error; its id is the one in a request's or a reply's headers, or a new one."""
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"),
                 "")
    request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    body = error_body(fault, request_id)
    ANSWERED.labels(ROUTE, "", fault.status).inc()
    await send({"type": "http.response.start", "status": fault.status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()), (b"cache-control", b"no-store"),
        *((name.encode(), value.encode()) for name, value in fault.headers.items())]})
    await send({"type": "http.response.body", "body": body})
