"""The reverse proxy's file, in nginx itself: what it passes on, cuts off and holds back."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from attacks.reverse import command, in_front, nginx_binary, prefix
from attacks.target import Target, answer, free_port

pytestmark = pytest.mark.skipif(nginx_binary() is None, reason="no nginx: apt install nginx-light")


class Upstream(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"path": self.path, "headers": {
            name.lower(): value for name, value in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    listen = free_port()
    with in_front(server.server_port, listen):
        yield listen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"https://localhost:{port}", verify=False) as client:
        yield client


def test_nginx_takes_the_file() -> None:
    with prefix(8000, 8443) as folder:
        ran = subprocess.run(command(folder, "-t"), capture_output=True, text=True)
        assert ran.returncode == 0 and "warn" not in ran.stderr, ran.stderr


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/healthz", "/readyz", "/openapi.json",
                                  "/v1/categories", "/v2/models/weave/infer"])
def test_our_paths_are_passed_on_with_the_name_they_were_asked_by(client: httpx.Client, path: str
                                                                  ) -> None:
    reply = client.post(path, content=b"x" * 2_000_000, headers={"authorization": "Bearer t"})
    seen: dict[str, Any] = reply.json()
    assert (reply.status_code, seen["path"]) == (200, path)
    assert seen["headers"]["host"] == client.base_url.netloc.decode()
    assert seen["headers"]["authorization"] == "Bearer t"
    assert seen["headers"]["content-length"] == "2000000"


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/metrics", "/admin",
                                  "//-/routes", "/v1/../-/routes", "/v1/%2e%2e/metrics",
                                  "/healthz/x"])
def test_no_other_path_is(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_no_client_steers_serve(client: httpx.Client) -> None:
    seen = client.get("/healthz", headers={
        "X-Request-Timeout-Seconds": "1", "X-Request-Disconnect-Disabled": "?1",
        "X-Session-Id": "1", "X_Session_Id": "1", "Serve-Multiplexed-Model-Id": "1",
        "serve_multiplexed_model_id": "1"}).json()["headers"]
    assert not [name for name in seen if "session" in name or "serve" in name or "request" in name]


def test_another_name_and_large_things_are_refused(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"x-a": "b" * 9000}).status_code == 400


def raw(port: int, wire: bytes) -> bytes:
    """What comes back until the connection is closed."""
    with Target(port=port, picture=b"", processes={}, tls=True).connect() as client:
        client.sendall(wire)
        return answer(client, 25)


def test_a_body_over_the_limit_is_refused_unread(port: int) -> None:
    came = raw(port, b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 135266304\r\n"
                     b"Connection: close\r\n\r\n")
    assert came.startswith(b"HTTP/1.1 413") and came.endswith(b"CLOSED")


def test_who_is_slow_with_headers_is_cut_off(port: int) -> None:
    began = time.monotonic()
    assert raw(port, b"GET /healthz HTTP/1.1\r\n") == b"CLOSED"
    assert 8 < time.monotonic() - began < 20
