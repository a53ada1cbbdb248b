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
import hashlib
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from igd.serve.config import EndpointConfig
from igd.serve.faults import Fault, fault_of
from igd.serve.gate import RETRY_AFTER_S, Admission, Budget, OverloadedError
from igd.serve.guard import PLACES, REQUEST_ID, body_limit, error_body
from igd.serve.logs import log_to_stderr
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
STRANGERS, KNOWN = 4, 4096
"""Requests for scores at a time of callers that are not known, and callers that are remembered."""
HEALTH = "/-/healthz"
REQUEST_ID_HEADER = b"x-request-id"
Headers = Iterable[tuple[bytes, bytes]]
SCORE_ROUTE = re.compile(r"/v1/categories/[^/]+/score(-batch)?|"
                         r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
OURS = re.compile(r"/((v1|v2|page)/.*|v2|openapi\.json|healthz|readyz|metrics)?")
"""Paths that Serve does not answer by itself, while it can ask the endpoint."""
REGISTRY = CollectorRegistry()
ANSWERED = Counter("igd_requests", "Requests answered.", ["route", "category", "code"],
                   registry=REGISTRY)
REFUSED = Counter("igd_refused", "Requests refused for lack of a place.", registry=REGISTRY)
ROUTE = "_door"
"""The route, in metrics, of what is answered here."""


def middlewares() -> list[Middleware]:
    """What Serve's proxy is to put around itself."""
    log_to_stderr()
    return [Middleware(Door)]


def collect(proxy: object) -> ByReplica:
    """Within a proxy: what was answered here."""
    return of_this_process("door", REGISTRY.collect())


class Door:
    """The outermost layer of the proxy.

    Callers are known by what they send as `Authorization`, once the endpoint has answered one of
    theirs with a score. Others are let in a few at a time and take no places: they may well be
    strangers, who could keep all places taken for the time that it takes to turn them away.

    Attributes:
        admission: as the endpoint said last; until then, of any number.
        taken: requests for scores that have come in, or may within `GRACE_S`, and which are not
            answered yet; of callers that are known.
        strangers: the same, of others.
        bodies: bytes of bodies that are held.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.admission = app, Admission()
        self.taken = self.strangers = 0
        self.bodies = Budget(EndpointConfig.body_bytes)
        self._known: OrderedDict[bytes, None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        path, headers, request_id = scope["path"], scope["headers"], _id(scope["headers"])
        if not (path.startswith("/") and path.isprintable()) or (
                path.startswith("/-/") and path != HEALTH):
            await _answer(Fault(status=404, code="not_found", message="Not Found",
                                headers={"connection": "close"}), request_id, send)
            return
        caller = _caller(headers) if scope["method"] == "POST" and SCORE_ROUTE.fullmatch(
            path) else None
        if caller is not None and not self._admits(caller):
            REFUSED.inc()
            await _answer(fault_of(OverloadedError()), request_id, send)
            return
        passage = _Passage(self, caller, path, request_id, receive, send)
        headers = [*filter(_harmless, headers), (REQUEST_ID_HEADER, request_id.encode())]
        try:
            await self._app({**scope, "headers": headers}, passage.receive, passage.send)
        except Exception:  # a server would say 500
            log.exception("%s: Serve's proxy failed", request_id)
        finally:
            passage.finish()
        await passage.end()

    def knows(self, caller: bytes) -> bool:
        return caller in self._known

    def met(self, caller: bytes, status: int) -> None:
        """What became of a request for a score."""
        if status == 200:
            self._known[caller] = None
            self._known.move_to_end(caller)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        elif status == 401:
            self._known.pop(caller, None)
        elif status == 503 and self.knows(caller):
            self.admission.refused()

    def _admits(self, caller: bytes) -> bool:
        if self.knows(caller):
            return self.admission.admits(self.taken, time.monotonic())
        return self.strangers < STRANGERS


class _Passage:
    """One request on its way to Serve, and the reply on its way back.

    Args:
        caller: who asks for a score; None where no score is asked for.
    """

    def __init__(self, door: Door, caller: bytes | None, path: str, request_id: str,
                 receive: Receive, send: Send) -> None:
        self._door, self._caller, self._id = door, caller, request_id
        self._receive, self._send = receive, send
        self._known = caller is not None and door.knows(caller)
        self._limit, self._seen, self._held = body_limit(EndpointConfig, path), 0, 0
        self._may_replace = OURS.fullmatch(path) is not None
        self._entered = self._answered = self._replaced = False
        self._whole = self._gone = self._lingers = self._lingering = False
        self._enter()
        self._grace = asyncio.get_running_loop().call_later(GRACE_S, self._leave)

    async def receive(self) -> Message:
        """The body, to just over the limit: the endpoint has what it will refuse by then."""
        if self._seen > self._limit:
            await asyncio.Event().wait()
        message = await self._more()
        if self._lingering:  # nobody is to have it any more
            await asyncio.Event().wait()
        more = len(message.get("body", b""))
        try:
            self._door.bodies.take(more)
            self._held += more
            if self._whole:
                self._grace.cancel()
                self._enter_late()
        except OverloadedError as error:
            if not self._answered:
                REFUSED.inc()
                await self._replace(fault_of(error))
            return {"type": "http.disconnect"}
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
            headers, status = message["headers"], message["status"]
            places = next((value for name, value in headers if name == PLACES), None)
            if places is not None:
                self._hear(places, status)
                message = {**message, "headers": [(name, value) for name, value in headers
                                                  if name != PLACES]}
            elif self._may_replace and status >= 400:
                await self._replace(_fault_of_serve(status))
                return
            self._answered, self._lingers = True, (b"connection", b"close") in headers
        elif not message.get("more_body", False):
            self._give_place()  # ahead of the end of the reply: its client may ask again at once
            if self._lingers and not self._whole:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _hear(self, places: bytes, status: int) -> None:
        admission = self._door.admission
        admission.at_once, admission.places = map(int, places.split())
        if self._caller is not None:
            self._door.met(self._caller, status)

    async def _linger(self) -> None:
        """Takes in what is left of a body, so that its client reads the reply.

        A connection that is closed on a client that still sends is reset, and the reply is lost.
        """
        self._lingering = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not (self._whole or self._gone) and self._seen < LINGER_BYTES:
                    await self._more()

    async def end(self) -> None:
        """Answers where Serve has not, as where a replica dies, to a client that is still there."""
        if not self._answered and not self._gone:
            log.error("%s: Serve has not answered", self._id)
            await self._replace(_fault_of_serve(500))

    async def _replace(self, fault: Fault) -> None:
        self._answered = self._replaced = True
        self._give_place()
        await _answer(fault, self._id, self._send)

    def finish(self) -> None:
        """Gives back all that was taken."""
        self._give_place()
        self._door.bodies.give(self._held)
        self._held = 0

    def _give_place(self) -> None:
        """For good."""
        self._grace.cancel()
        self._leave()
        self._caller = None

    def _enter(self) -> None:
        if self._caller is not None and not self._entered:
            self._entered = True
            self._door.taken += self._known
            self._door.strangers += not self._known

    def _enter_late(self) -> None:
        """Takes a place where the one that was held for the body has been given back.

        Raises:
            OverloadedError: none is left.
        """
        if self._caller is not None and not self._entered:
            if self._known and self._door.taken >= self._door.admission.places:
                raise OverloadedError
            self._enter()

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._door.taken -= self._known
            self._door.strangers -= not self._known


def _caller(headers: Headers) -> bytes:
    """Who asks, as far as can be told from here; not what they say it with."""
    return hashlib.sha256(b"".join(value for name, value in headers
                                   if name == b"authorization")).digest()


def _id(headers: Headers) -> str:
    """The request id that a client gave, where it is harmless, or a new one."""
    given = next((value for name, value in headers if name == REQUEST_ID_HEADER), b"")
    text = given.decode("latin-1")
    return text if REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


def _harmless(header: tuple[bytes, bytes]) -> bool:
    return header[0] != REQUEST_ID_HEADER and header[0].replace(b"_", b"-") not in STEERING


def _fault_of_serve(status: int) -> Fault:
    """What is told in place of what Serve says by itself."""
    if status in (408, 504):
        return Fault(status=504, code="timeout", message="no answer in time")
    return Fault(status=503, code="unavailable", message="no replica has answered; try again in "
                 f"{RETRY_AFTER_S} s", headers={"retry-after": str(RETRY_AFTER_S)})


async def _answer(fault: Fault, request_id: str, send: Send) -> None:
    """Sends an error."""
    body = error_body(fault, request_id)
    ANSWERED.labels(ROUTE, "", fault.status).inc()
    await send({"type": "http.response.start", "status": fault.status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (REQUEST_ID_HEADER, request_id.encode()), (b"cache-control", b"no-store"),
        *((name.encode(), value.encode()) for name, value in fault.headers.items())]})
    await send({"type": "http.response.body", "body": body})
