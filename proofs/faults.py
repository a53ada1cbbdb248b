"""A proxy before an HTTP server on this machine that misbehaves, request by request.

A rule looks at each request and says what goes wrong with it. Requests and replies are held whole,
so that a fault may strike before a request is forwarded, after it was carried out, or anywhere in
the body of its reply. One request of a connection at a time, HTTP/1.1, no upgrades.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

MAX_HEAD_BYTES = 1 << 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks for.

    Attributes:
        number: of this request since the proxy was made, from 0.
        key: the decoded path without its first part, the bucket.
    """

    number: int
    method: str
    key: str
    query: str

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with a request; everything at once where several are set.

    Attributes:
        before: called before the request is forwarded.
        refuse: the connection is reset instead of forwarding the request.
        status: the answer instead, such as "503 SlowDown".
        after: called when the request was carried out and its reply is here.
        lose_reply: the connection is reset instead of replying.
        flip_at, short_at, reset_at: share of the reply's body after which a bit is turned, it ends
            under a Content-Length that agrees, or the connection is reset.
        bytes_per_s: how fast the body is sent.
    """

    before: Callable[[], object] | None = None
    refuse: bool = False
    status: str | None = None
    after: Callable[[], object] | None = None
    lose_reply: bool = False
    flip_at: float | None = None
    short_at: float | None = None
    reset_at: float | None = None
    bytes_per_s: float | None = None


Rule = Callable[[Request], Fault | None]


def no_fault(request: Request) -> None:
    """Everything goes well."""


class Proxy:
    """Listens on a loopback port for as long as it is entered.

    Attributes:
        rule: asked about every request; called in the proxy's thread.
        log: every request, in the order they came.
    """

    def __init__(self, host: str, port: int) -> None:
        self.rule: Rule = no_fault
        self.log: list[Request] = []
        self.port = 0
        self._upstream = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self) -> None:
        """Takes connections, always on the same port."""
        self._do(self._up())

    def down(self) -> None:
        """Resets all connections and refuses new ones."""
        self._do(self._down())

    def _do(self, action: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(timeout=30)

    async def _up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port,
                                                  limit=MAX_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            _reset(client)
        while self._clients:  # until each has noticed
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            _reset(writer)
            self._clients.discard(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; False where the connection is to be reset."""
        message = await Message.read(reader)
        request = self._request(message.head)
        self.log.append(request)
        fault = self.rule(request) or Fault()
        if fault.before:
            fault.before()
        if fault.refuse:
            return False
        if fault.status:
            return await _send(writer, _refusal(fault.status, request.method), Fault())
        reply = await self._forward(message, request.method)
        if fault.after:
            fault.after()
        if fault.lose_reply:
            return False
        return await _send(writer, reply, fault)

    def _request(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        parts = urlsplit(target)
        return Request(number=len(self.log), method=method, query=parts.query,
                       key=unquote(parts.path).lstrip("/").partition("/")[2])

    async def _forward(self, message: Message, method: str) -> Message:
        reader, writer = await asyncio.open_connection(*self._upstream, limit=MAX_HEAD_BYTES)
        try:
            writer.write(message.head + message.body)
            return await Message.read(reader, bodiless=method == "HEAD")
        finally:
            writer.transport.abort()


@dataclass(frozen=True)
class Message:
    """A head with its empty line, and a body whose length the head states."""

    head: bytes
    body: bytes

    @classmethod
    async def read(cls, reader: asyncio.StreamReader, bodiless: bool = False) -> Message:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (
            line.partition(b":") for line in head.split(b"\r\n")[1:])}
        without = bodiless or head.split(b" ", 2)[1] in (b"204", b"304")
        if without:
            return cls(head, b"")
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            return cls(head, await _chunks(reader)).measured()
        return cls(head, await reader.readexactly(int(fields.get(b"content-length", 0))))

    def measured(self) -> Message:
        """The same body under a Content-Length of its own."""
        kept = [line for line in self.head.rstrip(b"\r\n").split(b"\r\n")
                if not line.lower().startswith((b"content-length:", b"transfer-encoding:"))]
        kept.append(b"Content-Length: %d" % len(self.body))
        return Message(b"\r\n".join(kept) + b"\r\n\r\n", self.body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a reset, not as if all had been said."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # a trailer
    return body


async def _send(writer: asyncio.StreamWriter, reply: Message, fault: Fault) -> bool:
    body, upto = reply.body, 1.0
    if fault.flip_at is not None and body:
        at = int(fault.flip_at * len(body))
        body = body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1:]
    if fault.short_at is not None and body:
        body = body[:int(fault.short_at * len(body))]
        reply = Message(reply.head, body).measured()
    if fault.reset_at is not None:
        upto = fault.reset_at
    writer.write(reply.head)
    await _trickle(writer, body[:int(upto * len(body))], fault.bytes_per_s)
    await writer.drain()
    return upto == 1.0


async def _trickle(writer: asyncio.StreamWriter, body: bytes, bytes_per_s: float | None) -> None:
    if bytes_per_s is None:
        writer.write(body)
        return
    for at in range(len(body)):
        writer.write(body[at:at + 1])
        await writer.drain()
        await asyncio.sleep(1 / bytes_per_s)


def _refusal(status: str, method: str) -> Message:
    number, _, code = status.partition(" ")
    body = b"" if method == "HEAD" else (
        f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())
    head = f"HTTP/1.1 {number} {code}\r\nContent-Type: application/xml\r\n"
    return Message(f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body)
