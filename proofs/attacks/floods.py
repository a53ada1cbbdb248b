"""Much of something, or something slowly."""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from attacks.attack import LINGERS_S, Attack, Seen, said
from attacks.target import Target, answer

FLOOD_S = 10.0
LONG_S = 35.0
"""To look whether what is slow is cut off within 30 s."""
MB = b"x" * 1_000_000
CHUNKED = b"Transfer-Encoding: chunked"


def attacks() -> Iterator[Attack]:
    yield Attack(name="nothing, for comparison", expected="nothing", run=_nothing)
    yield Attack(name="300 MB with a Content-Length", expected="413 closed", run=_large(
        lambda target: target.post(b"Content-Length: 300000000"), [MB] * 300))
    yield Attack(name="300 MB in chunks", expected="413 closed", max_rss_mb=150, run=_large(
        lambda target: target.post(CHUNKED), [b"F4240\r\n" + MB + b"\r\n"] * 300))
    yield Attack(name="a million chunks of 6 bytes", expected="422", run=_large(
        lambda target: target.post(CHUNKED), [b"6\r\nabcdef\r\n" * 1000] * 1000 + [b"0\r\n\r\n"],
        "422"))
    yield Attack(name="200,000 chunks of 6 bytes, each in a packet", expected="422", run=_large(
        lambda target: target.post(CHUNKED), [b"6\r\nabcdef\r\n"] * 200_000 + [b"0\r\n\r\n"],
        "422", "408 closed"))
    yield Attack(name="one slow body, a byte a second", expected="408 closed within 30 s",
                 run=_slow(1, lambda target: target.post(b"Content-Length: 1000"), "408 closed"))
    yield Attack(name="80 slow bodies, a byte a second", bare=True,
                 expected="others are served meanwhile", run=_slow(
                     80, lambda target: target.post(b"Content-Length: 1000"), may_stay=True))
    yield Attack(name="50 slow headers, a byte a second", expected="cut off within 30 s", bare=True,
                 by="proxy", run=_slow(50, lambda target: b"GET /healthz HTTP/1.1\r\nX-A: "))
    yield Attack(name="1,000 connections that say nothing", expected="cut off within 30 s",
                 bare=True, by="proxy", run=_slow(1000, None))
    yield Attack(name="a million headers", expected="refused, unnoticed by others", bare=True,
                 by="proxy", run=_endless([b"X-A: b\r\n" * 125_000] * 8))
    yield Attack(name="a header of 64 MB", expected="refused, unnoticed by others", bare=True,
                 by="proxy", run=_endless([b"X-A: ", *[MB] * 64]))


def of_strangers() -> Iterator[Attack]:
    """For an endpoint that asks for a token."""
    yield Attack(name="20 clients with a wrong token, without a pause", max_cpu_s=20,
                 expected="401 or 503, others are served", run=_flood(20, b"wrong"))
    yield Attack(name="20 clients without a token, without a pause", max_cpu_s=20,
                 expected="401 or 503, others are served", run=_flood(20, b""))


def _flood(count: int, token: bytes) -> Callable[[Target], Seen]:
    """So many clients that ask for scores with another token, again and again."""
    def run(target: Target) -> Seen:
        stranger, ends = replace(target, token=token), time.monotonic() + FLOOD_S
        with ThreadPoolExecutor(count) as pool:
            found = sum(pool.map(lambda _: _asked_until(stranger, ends), range(count)), Counter())
        told = ", ".join(f"{number} x {status}" for status, number in sorted(found.items()))
        return Seen(text=told, good=found.keys() <= {"401", "503"} and found["401"] > 0)

    return run


def _asked_until(target: Target, ends: float) -> Counter[str]:
    """The statuses of requests on one connection after another."""
    found: Counter[str] = Counter()
    while time.monotonic() < ends:
        with target.connect() as client:
            client.sendall(target.post(b"Content-Length: %d" % len(target.picture),
                                       b"Connection: close", body=target.picture))
            found[said(answer(client, 10)).split()[0]] += 1
    return found


def _nothing(target: Target) -> Seen:
    time.sleep(5)
    return Seen(text="nothing", good=True)


def _large(start: Callable[[Target], bytes], rest: Iterable[bytes], *expected: str
           ) -> Callable[[Target], Seen]:
    """A body in pieces. One that is refused may meet a connection that is closed already."""
    def run(target: Target) -> Seen:
        with target.connect() as client:
            sent = _send(client, start(target), rest)
            found = said(answer(client, LINGERS_S))
        return Seen(text=f"{found} after {sent / 1e6:.1f} MB",
                    good=found in (expected or ("413 closed", "nothing closed")))

    return run


def _endless(rest: Iterable[bytes]) -> Callable[[Target], Seen]:
    def run(target: Target) -> Seen:
        with target.connect() as client:
            sent = _send(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", rest, b"\r\n\r\n")
            found = said(answer(client, 30))
        return Seen(text=f"{found} after {sent / 1e6:.1f} MB",
                    good=found in ("431 closed", "400 closed", "nothing closed"))

    return run


def _send(client: socket.socket, *parts: bytes | Iterable[bytes]) -> int:
    """How many bytes went out before the other side closed."""
    sent = 0
    for part in parts:
        for piece in [part] if isinstance(part, bytes) else part:
            try:
                client.sendall(piece)
            except (OSError, ssl.SSLError):
                return sent
            sent += len(piece)
    return sent


def _slow(count: int, start: Callable[[Target], bytes] | None, expected: str = "", *,
          may_stay: bool = False) -> Callable[[Target], Seen]:
    """So many clients that send a byte a second, or nothing, until they are cut off."""
    trickle = b"x" if start else b""

    def run(target: Target) -> Seen:
        with ExitStack() as stack:
            clients = [stack.enter_context(target.connect() if start else target.knock())
                       for _ in range(count)]
            for client in clients:
                _send(client, start(target) if start else b"")
                client.setblocking(False)
            began, came, left = time.monotonic(), [b""] * count, set(range(count))
            last = 0.0
            while left and time.monotonic() - began < LONG_S:
                time.sleep(1)
                for n in list(left):
                    came[n] += _arrived(clients[n])
                    if came[n].endswith(b"CLOSED") or not _trickled(clients[n], trickle):
                        left.discard(n)
                        last = time.monotonic() - began
            replies = {said(one) for one in came if one}
        told = f"{count - len(left)} of {count} cut off" + (f" in {last:.0f} s" if last else "")
        cut = not left and last <= 30 and (not expected or replies == {expected})
        return Seen(text=", ".join([told, *sorted(replies)]), good=cut or may_stay)

    return run


def _arrived(client: socket.socket) -> bytes:
    try:
        return client.recv(65536) or b"CLOSED"
    except (BlockingIOError, ssl.SSLWantReadError):
        return b""
    except (OSError, ssl.SSLError):
        return b"CLOSED"


def _trickled(client: socket.socket, piece: bytes) -> bool:
    try:
        return not piece or client.send(piece) > 0
    except (BlockingIOError, ssl.SSLWantWriteError):
        return True
    except (OSError, ssl.SSLError):
        return False
