"""What every request passes before anything is done for it, and every reply on its way out.

Host and origin, token, the size of the body and the time it takes; a request id, headers that keep
browsers from guessing, and the count of it all. A plain ASGI layer: it sees bytes as they come.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from igd.serve import page
from igd.serve.config import EndpointConfig
from igd.serve.faults import Fault, RequestError, fault_of
from igd.serve.gate import Budget
from igd.serve.metrics import UNKNOWN
from igd.serve.tokens import name_of

if TYPE_CHECKING:  # the door, in Ray Serve's proxy, needs no torch
    from igd.serve.endpoint import Endpoint

log = logging.getLogger(__name__)

OPEN = {*page.PATHS, "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Paths that need no token: they say nothing of models or images."""
UNHOSTED = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"}
"""Paths that a kubelet or Prometheus asks for by an address; a page that makes a browser come here
(DNS rebinding) can only do so by a name."""
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"x-frame-options", b"DENY"), (b"cross-origin-resource-policy", b"same-origin"),
           (b"cache-control", b"no-store")]
PLACES = b"x-igd-places"
"""Header of every reply to the door ahead: images scored at once, and those that wait as well."""
ONCE = {"host", "origin", "authorization", "content-length", "content-type", "transfer-encoding"}
"""Headers that two programs would read differently, were they there twice."""
MAX_HEADERS, MAX_HEADER_BYTES = 128, 64 * 1024
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BATCH_ROUTE = re.compile(r"/v1/categories/[^/]+/score-batch|"
                         r"/v2/models/[^/]+(/versions/[^/]+)?/infer")


class Guard:
    """The outermost layer of the application.

    Args:
        proxied: whether Ray Serve's proxy stands ahead. It adds the request id itself, and
            `igd.serve.door` in it hears how many places there are.
    """

    def __init__(self, app: ASGIApp, endpoint: Endpoint, proxied: bool = False) -> None:
        self._app, self._endpoint, self._config = app, endpoint, endpoint.config
        self._proxied = proxied
        self._places = f"{self._config.at_once} {endpoint.places}".encode()
        self._hosts = {host.lower() for host in self._config.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send, self._count)
        request.headers.append((PLACES, self._places) if self._proxied
                               else (b"x-request-id", request.id.encode()))
        if self._endpoint.draining:
            request.headers.append((b"connection", b"close"))
        body = _Body(receive, body_limit(self._config, scope["path"]), self._config.body_timeout_s,
                     self._endpoint.bodies, request.header)
        try:
            request.caller = self._admit(scope, request)
            async with asyncio.timeout(self._config.timeout_s):
                await self._app(scope, body, request.send)
        except TimeoutError:
            await request.fail(RequestError(504, "timeout", "no answer within "
                                            f"{self._config.timeout_s:g} s"))
        except RequestError as error:
            await request.fail(error)
        except Exception as error:  # the border: whatever it is, its client gets an answer
            log.exception("%s failed", request.id)
            await request.fail(error)
        finally:
            body.forget()

    def _admit(self, scope: Scope, request: _Request) -> str | None:
        """Whose request it is; None where nobody has to say.

        Raises:
            RequestError: it is not to be answered.
        """
        _check_headers(scope["headers"])
        path, host = scope["path"], request.header("host").lower()
        if not self._answers_to(host, path):
            raise RequestError(403, "host_not_allowed", "this endpoint is not called by that "
                               "name; serve it with --allow-host")
        if request.header("origin").lower() not in ("", f"http://{host}", f"https://{host}"):
            raise RequestError(403, "cross_origin", "requests of other sites are refused")
        if path in OPEN or not self._config.tokens:
            return None
        caller = name_of(self._config.tokens, request.header("authorization"))
        if caller is None:
            raise RequestError(401, "unauthorized", "this token is not known here" if
                               request.header("authorization").lower().startswith("bearer ") else
                               "send Authorization: Bearer TOKEN")
        return caller

    def _answers_to(self, host: str, path: str) -> bool:
        name = _name(host)
        return name in self._hosts or (path in UNHOSTED and (not host or _is_address(name)))

    def _count(self, scope: Scope, status: int, seconds: float, caller: str | None) -> None:
        route = getattr(scope.get("route"), "path", "_none")
        category = scope.get("path_params", {}).get("category")
        if category is not None:
            known = {entry.category for entry in self._endpoint.catalogue.entries}
            category = category if category in known else UNKNOWN
        self._endpoint.metrics.answered(route, category or "", status, seconds, caller)


class _Request:
    """One request and the reply to it."""

    def __init__(self, scope: Scope, send: Send,
                 count: Callable[[Scope, int, float, str | None], None]) -> None:
        self._scope, self._send, self._count = scope, send, count
        self.headers = list(HEADERS)
        self._began, self._started = time.perf_counter(), False
        self._headers: dict[str, str] = {name.decode("latin-1"): value.decode("latin-1")
                         for name, value in scope["headers"]}
        given = self.header("x-request-id")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.caller: str | None = None
        scope.setdefault("state", {})["request_id"] = self.id

    def header(self, name: str) -> str:
        return self._headers.get(name, "")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": [*message["headers"], *self.headers]}
            self._count(self._scope, message["status"], time.perf_counter() - self._began,
                        self.caller)
            if message["status"] >= 500 or self.caller:
                log.log(logging.WARNING if message["status"] == 504 else logging.INFO,
                        "%s %s %s: %d, for %s", self.id, self._scope["method"],
                        ascii(self._scope["path"][:200]), message["status"], self.caller)
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        if self._started:
            return
        fault = fault_of(error)
        body = error_body(fault, self.id)
        await self.send({"type": "http.response.start", "status": fault.status, "headers": [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in fault.headers.items())]})
        await self._send({"type": "http.response.body", "body": body})


class _Body:
    """A request's body as it comes in, to a limit of bytes and of time."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float, budget: Budget,
                 header: Callable[[str], str]) -> None:
        self._receive, self._limit, self._timeout_s = receive, limit, timeout_s
        self._budget, self._held = budget, 0
        self._ends = time.monotonic() + timeout_s
        self._seen, self._whole = 0, False
        declared = header("content-length")
        self._too_large = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit)

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # the client's going away
        if self._too_large:
            raise self._refused()
        try:
            async with asyncio.timeout(max(0.0, self._ends - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(408, "body_timeout", "the body did not come in whole within "
                               f"{self._timeout_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise RequestError(400, "incomplete_body", "the body ended early")
        if message["type"] == "http.request":
            self._seen += (more := len(message.get("body", b"")))
            self._whole = not message.get("more_body", False)
            if self._seen > self._limit:
                raise self._refused()
            self._budget.take(more)
            self._held += more
        return message

    def forget(self) -> None:
        self._budget.give(self._held)
        self._held = 0

    def _refused(self) -> RequestError:
        return RequestError(413, "body_too_large",
                            f"the body is larger than {self._limit} bytes")


def body_limit(config: EndpointConfig | type[EndpointConfig], path: str) -> int:
    """Bytes that a body sent to a path may have."""
    return config.max_batch_bytes if BATCH_ROUTE.fullmatch(path) else config.max_body_bytes


def error_body(fault: Fault, request_id: str) -> bytes:
    """The one shape of errors, as `igd.serve.schemas.ErrorReply` has it."""
    return json.dumps({"error": fault.message, "code": fault.code,
                       "request_id": request_id}).encode()


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuses what programs on the way here may have read otherwise.

    Raises:
        RequestError: too many or too long, or one twice that says something once.
    """
    if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
        raise RequestError(431, "headers_too_large", f"expected at most {MAX_HEADERS} headers of "
                           f"{MAX_HEADER_BYTES} bytes together")
    names = [name.decode("latin-1") for name, _ in headers]
    for name in ONCE:
        if names.count(name) > 1:
            raise RequestError(400, "bad_request", f"the header {name} is there twice")
    if any(name == b"transfer-encoding" and value.lower() != b"chunked"
           for name, value in headers):
        raise RequestError(400, "bad_request", "a body may be chunked, and not encoded otherwise")


def _name(host: str) -> str:
    """The name in a Host header in lower case, without its port; empty where it is none."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]) if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
