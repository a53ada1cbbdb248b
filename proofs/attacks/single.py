"""Requests that are wrong, or that two programs might read differently."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from attacks.attack import LINGERS_S, WAIT_S, Attack, Seen, one_request, said
from attacks.target import Target, answer

GET = b"GET /v1/categories HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
EMPTY = b"0\r\n\r\n"
REFUSED, GONE = "400 closed", "nothing closed"


def attacks() -> Iterator[Attack]:
    for name, wire in FRAMING.items():
        yield Attack(name=name, expected=REFUSED, by="proxy", run=one_request(wire, REFUSED))
    for name, (wire, expected) in ODD.items():
        yield Attack(name=name, expected=expected, run=one_request(
            wire, expected, wait_s=LINGERS_S if expected.endswith("closed") else WAIT_S))
    for name, (wire, expected) in SERVES.items():
        yield Attack(name=name, expected=expected, by="proxy", run=one_request(wire, expected))
    for path in PATHS:
        yield Attack(name=f"category {path[:20].decode()}", expected="404",
                     run=one_request(lambda target, path=path: target.post(
                         b"Content-Length: 1", body=b"x",
                         path=b"/v1/categories/" + path + b"/score"), "404", "404 closed"))
    yield Attack(name="ten requests at once on one connection", expected="ten answers in order",
                 by="proxy", run=_pipelined)
    yield Attack(name="the client closes its side before the answer", expected="closed at once",
                 by="proxy", run=_half_closed)
    yield Attack(name="twenty clients that leave while being scored", by="proxy",
                 expected="their places are free within 5 s", run=_gone)


Wire = Callable[[Target], bytes]
FRAMING: dict[str, Wire] = {
    "Content-Length and Transfer-Encoding": lambda target: target.post(
        b"Content-Length: 5", CHUNKED, body=EMPTY + GET + b"\r\n"),
    "two Content-Lengths": lambda target: target.post(
        b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "Content-Length: 5, 5": lambda target: target.post(b"Content-Length: 5, 5", body=b"hello"),
    "Content-Length: +5": lambda target: target.post(b"Content-Length: +5", body=b"hello"),
    "Transfer-Encoding: xchunked": lambda target: target.post(
        b"Transfer-Encoding: xchunked", body=EMPTY),
    "Transfer-Encoding: chunked, identity": lambda target: target.post(
        b"Transfer-Encoding: chunked, identity", body=EMPTY),
    "a chunk of 2^70 bytes": lambda target: target.post(CHUNKED, body=b"F" * 18 + b"\r\nx"),
    "a header on two lines": lambda target: GET + b"X-A: b\r\n c\r\n\r\n",
    "a space before the colon": lambda target: GET + b"X-A : b\r\n\r\n",
    "lines that end in LF": lambda target: b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "a method that is none": lambda target: b"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in the path": lambda target: b"GET /v1/\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
ODD: dict[str, tuple[Wire, str]] = {
    "Transfer-Encoding: gzip, chunked": (lambda target: target.post(
        b"Transfer-Encoding: gzip, chunked", body=EMPTY), REFUSED),
    "two Hosts": (lambda target: b"GET /v1/categories HTTP/1.1\r\nHost: evil.example\r\n"
                                 b"Host: localhost\r\n\r\n", REFUSED),
    "Host of another name": (
        lambda target: b"GET /v1/categories HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
    "the whole URI in the request line, Host of another name": (
        lambda target: b"GET http://localhost/v1/categories HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "403"),
    "HTTP/1.0 without Host": (lambda target: b"GET /v1/categories HTTP/1.0\r\n\r\n", "403 closed"),
    "Origin of another site": (lambda target: target.post(
        b"Origin: http://evil.example", b"Content-Length: 1", body=b"x"), "403"),
    "a header of 100 KB": (lambda target: GET + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
                           "431 closed"),
    "10,000 headers": (lambda target: GET + b"".join(
        b"X-%d: b\r\n" % n for n in range(10_000)) + b"\r\n", "431 closed"),
    "Expect: 100-continue for 300 MB": (lambda target: target.post(
        b"Content-Length: 300000000", b"Expect: 100-continue"), "100, 413 closed"),
}
SERVES: dict[str, tuple[Wire, str]] = {
    "/-/routes": (lambda target: b"GET /-/routes HTTP/1.1\r\nHost: localhost\r\n\r\n",
                  "404 closed"),
    "/-/healthz": (lambda target: b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
    "headers for Serve that are not UTF-8": (
        lambda target: GET + b"X-Request-Timeout-Seconds: \xff\r\nX-Request-Id: \xff\r\n"
                             b"Serve_Multiplexed_Model_Id: \xff\r\n\r\n", "200"),
    "a header that makes Serve give up at once": (
        lambda target: GET + b"X-Request-Timeout-Seconds: 0.000001\r\n\r\n", "200"),
    "a WebSocket": (
        lambda target: GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                             b"Sec-WebSocket-Version: 13\r\n"
                             b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", "403 closed"),
}
PATHS = (b"%2e%2e", b"..%2f..%2fetc", b"..%5c..%5cx", b"%00", b"weave%00", b"a" * 10_000, b"%ff")


def _pipelined(target: Target) -> Seen:
    with target.connect() as client:
        client.sendall((GET + b"\r\n") * 10)
        found = said(answer(client, 3))
    return Seen(text=found, good=found == ", ".join(["200"] * 10))


def _half_closed(target: Target) -> Seen:
    with target.connect() as client:
        client.sendall(target.post(b"Content-Length: %d" % len(target.picture),
                                   body=target.picture))
        client.shutdown(1)
        found = said(answer(client, 5))
    return Seen(text=found, good=found in (GONE, "200 closed"))


def _gone(target: Target) -> Seen:
    for _ in range(20):
        with target.connect() as client:
            client.sendall(target.post(b"Content-Length: %d" % len(target.picture),
                                       body=target.picture))
    for waited in range(20):
        with target.connect() as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if b"igd_images_in_flight{" in (page := answer(client, 10)):
                taken = max(float(line.split()[-1]) for line in page.splitlines()
                            if line.startswith(b"igd_images_in_flight{"))
                if taken == 0:
                    return Seen(text=f"free within {waited / 4 + 0.25:g} s", good=True)
        time.sleep(0.25)
    return Seen(text="still taken after 5 s", good=False)
