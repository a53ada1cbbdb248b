"""What is done to an endpoint, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attacks.target import Target, answer

WAIT_S = 1.5
LINGERS_S = 8.0
"""For the endpoint to close, which listens to a body that it has refused for a while."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of an attack."""

    text: str
    good: bool


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One abuse.

    Attributes:
        by: who decides: `endpoint`, the code of this repository, or `proxy`, Ray Serve's.
        bare: whether Serve's proxy alone cannot hold it off, so that it takes a reverse proxy.
        max_rss_mb, max_cpu_s: of each process.
    """

    name: str
    expected: str
    run: Callable[[Target], Seen]
    by: str = "endpoint"
    bare: bool = False
    max_rss_mb: int = 100
    max_cpu_s: float = 10.0


def said(came: bytes) -> str:
    """The statuses of replies, and whether the connection was closed after them."""
    statuses = [part.split(None, 1)[0].decode("ascii", "replace")
                for part in came.split(b"HTTP/1.1 ")[1:]]
    return " ".join([", ".join(statuses) or "nothing", *["closed"] * came.endswith(b"CLOSED")])


def one_request(wire: Callable[[Target], bytes], *expected: str, wait_s: float = WAIT_S
                ) -> Callable[[Target], Seen]:
    """An attack of a single request, that should be answered in one of these ways."""
    def run(target: Target) -> Seen:
        with target.connect() as client:
            client.sendall(wire(target))
            found = said(answer(client, wait_s))
        return Seen(text=found, good=found in expected)

    return run
