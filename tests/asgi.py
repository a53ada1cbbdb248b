"""Requests as an ASGI server hands them over, for what no well-behaved client sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving import TestClient

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
HOST = (b"host", b"localhost")


@dataclass(kw_only=True)
class Reply:
    """What came back; status 0: nothing did."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of a header that is there at most once."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else None

    @property
    def code(self) -> str:
        """Of an error, once its shape has been checked."""
        error = json.loads(self.body)
        assert set(error) == {"error", "code", "request_id"}
        assert error["request_id"] == self.header("x-request-id")
        for inside in ("Traceback", ".py", "/tmp"):
            assert inside not in self.body.decode()
        return str(error["code"])


def body_of(chunks: Iterable[bytes], *, then: str = "end") -> Receive:
    """Chunks of a body; then its end, silence, or the client's going away."""
    left = iter(chunks)

    async def receive() -> dict[str, Any]:
        for chunk in left:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if then == "silence":
            await asyncio.Event().wait()
        if then == "gone":
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def ask(client: TestClient, path: str, receive: Receive, *, method: str = "POST",
              headers: Headers = (HOST,)) -> Reply:
    """One request, in the event loop of the application; see `in_loop`."""
    reply = Reply()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = [(n.decode(), v.decode()) for n, v in message["headers"]]
        else:
            reply.body += message.get("body", b"")

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
             "scheme": "http", "path": path, "raw_path": path.encode("utf-8", "replace"),
             "root_path": "", "query_string": b"", "headers": list(headers),
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {}}
    await client.app(scope, receive, send)
    return reply


def in_loop(client: TestClient, call: Callable[[], Awaitable[Any]]) -> Any:
    """Runs a coroutine in the event loop of the application."""
    assert client.portal is not None
    return client.portal.call(call)


def asked(client: TestClient, path: str, receive: Receive | None = None, **more: Any) -> Reply:
    """The reply to one request, without a body where none is given."""
    found: Reply = in_loop(client, lambda: ask(client, path, receive or body_of([]), **more))
    return found
