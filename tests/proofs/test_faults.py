"""The fault proxy lets through what it should, and breaks what it should, nothing else."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faults import Fault, Proxy

BODY = bytes(range(256)) * 40


class Server(BaseHTTPRequestHandler):
    """Stores what is put, in a class attribute of the test's own subclass."""

    protocol_version = "HTTP/1.1"
    stored: dict[str, bytes]

    def do_PUT(self) -> None:
        self.stored[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(b"")

    def do_GET(self) -> None:
        if self.path == "/bucket/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return
        self._reply(self.stored[self.path.partition("?")[0]])

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.stored[self.path])))
        self.end_headers()

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stored() -> dict[str, bytes]:
    return {"/bucket/a%20b": BODY}


@pytest.fixture
def proxy(stored) -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Server,), {"stored": stored}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Proxy("127.0.0.1", server.server_port) as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(proxy) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    yield client
    client.close()


def asked(client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
          ) -> tuple[int, bytes]:
    client.request(method, path, body)
    reply = client.getresponse()
    return reply.status, reply.read()


def test_one_connection_carries_whatever_bodies_there_are(proxy, client, stored) -> None:
    assert asked(client, "PUT", "/bucket/new", b"x" * 70_000) == (200, b"")
    assert asked(client, "HEAD", "/bucket/new") == (200, b"")
    assert asked(client, "GET", "/bucket/chunked") == (200, b"abcde")
    assert asked(client, "GET", "/bucket/a%20b?versions=1") == (200, BODY)
    assert stored["/bucket/new"] == b"x" * 70_000
    assert [(request.method, request.key, request.query, request.writes)
            for request in proxy.log] == [
        ("PUT", "new", "", True), ("HEAD", "new", "", False), ("GET", "chunked", "", False),
        ("GET", "a b", "versions=1", False)]


def test_a_refused_request_is_not_carried_out_and_one_whose_reply_is_lost_is(proxy, client, stored
                                                                             ) -> None:
    told: list[str] = []
    for fault, there in ((Fault(refuse=True, before=lambda: told.append("before")), False),
                         (Fault(lose_reply=True, after=lambda: told.append("after")), True)):
        proxy.rule = lambda request, fault=fault: fault
        with pytest.raises(ConnectionError):
            asked(client, "PUT", "/bucket/new", b"x")
        client.close()
        assert ("/bucket/new" in stored) is there
    assert told == ["before", "after"]


def test_a_status_is_answered_in_the_servers_place(proxy, client, stored) -> None:
    proxy.rule = lambda request: Fault(status="503 SlowDown") if request.writes else None
    status, body = asked(client, "PUT", "/bucket/new", b"x")
    assert (status, b"<Code>SlowDown</Code>" in body, stored.keys()) == (
        503, True, {"/bucket/a%20b"})
    assert asked(client, "GET", "/bucket/a%20b") == (200, BODY)  # on the same connection


def test_bodies_are_cut_and_bent(proxy, client) -> None:
    proxy.rule = lambda request: Fault(short_at=0.25)
    assert asked(client, "GET", "/bucket/a%20b") == (200, BODY[:len(BODY) // 4])
    proxy.rule = lambda request: Fault(flip_at=0.5)
    _, bent = asked(client, "GET", "/bucket/a%20b")
    wrong = [at for at in range(len(BODY)) if bent[at] != BODY[at]]
    assert (len(bent), wrong) == (len(BODY), [len(BODY) // 2])
    assert (bent[wrong[0]] ^ BODY[wrong[0]]).bit_count() == 1
    proxy.rule = lambda request: Fault(reset_at=0.5)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        asked(client, "GET", "/bucket/a%20b")


def test_a_server_that_is_down_refuses_connections_until_it_is_up(proxy, client) -> None:
    assert asked(client, "GET", "/bucket/chunked")[0] == 200
    port = proxy.port
    proxy.down()
    for _ in range(2):  # the open connection, then a new one
        with pytest.raises(ConnectionError):
            asked(client, "GET", "/bucket/chunked")
        client.close()
    proxy.up()
    assert asked(client, "GET", "/bucket/chunked") == (200, b"abcde")
    assert proxy.port == port


def test_a_slow_body_comes_a_byte_at_a_time(proxy) -> None:
    proxy.rule = lambda request: Fault(bytes_per_s=1)
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.7)
    client.request("GET", "/bucket/a%20b")
    reply = client.getresponse()
    assert reply.read(1) == BODY[:1]
    with pytest.raises(TimeoutError):
        reply.read(5)
    client.close()
