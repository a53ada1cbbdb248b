"""A load of requests: each sent when it is due, whatever has been answered.

    python benchmarks/load.py < load.json > answers.json

In an open loop (`rate`) a request is due at a time that was settled beforehand, and its latency
counts from then: a server that stalls is not spared the requests of the time it stalled (no
coordinated omission). In a closed loop (`workers`) each worker sends its next request when its last
was answered. Runs as a process of its own, and says what it took of a CPU.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

REFUSED = 503
REFUSED_WAIT_S = 0.02
"""Of a worker of a closed loop that was refused."""
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to come.

    Attributes:
        files: whose bytes are the bodies, in turn.
        rate: requests per second of an open loop; 0: a closed one, of `workers`.
        poisson: due at random times of that rate; otherwise at equal distances.
        connections: at most at a time. A request that finds none free waits, and its time counts.
        timeout_s: without an answer; counts as broken.
    """

    host: str
    port: int
    path: str
    files: tuple[str, ...]
    seconds: float
    rate: float = 0.0
    workers: int = 0
    poisson: bool = True
    seed: int = 0
    connections: int = 1000
    timeout_s: float = 60.0

    def due(self) -> Iterator[float]:
        """Seconds from the start at which requests are due."""
        chance, at = random.Random(self.seed), 0.0
        for number in itertools.count(1):
            at = at + chance.expovariate(self.rate) if self.poisson else number / self.rate
            if at >= self.seconds:
                return
            yield at


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of a load.

    Attributes:
        requests: for each, seconds from the start at which it was due, sent and answered, and the
            status; 0 where the connection broke.
        cpu_s: of the generator.
        opened: connections.
    """

    requests: list[tuple[float, float, float, int]]
    seconds: float
    cpu_s: float
    opened: int

    def latencies(self, status: int = 200) -> list[float]:
        """Seconds from when a request was due to its answer."""
        return [done - due for due, _, done, found in self.requests if found == status]

    def figures(self) -> dict[str, Any]:
        """Rates per second, milliseconds from when a request was due, and counts by status."""
        counts = Counter(status for *_, status in self.requests)
        ended = max((done for *_, done, _ in self.requests), default=self.seconds)
        return {
            "requests": len(self.requests), "statuses": {str(k): counts[k] for k in sorted(counts)},
            "accepted": round(counts[200] / max(1, len(self.requests)), 4),
            "goodput_per_s": round(counts[200] / max(ended, self.seconds), 2),
            "accepted_ms": quantiles(self.latencies()),
            "refused_ms": quantiles(self.latencies(REFUSED)),
            "sent_late_ms": quantiles([sent - due for due, sent, *_ in self.requests]),
            "generator_cpu_s": round(self.cpu_s, 2), "connections": self.opened,
            "seconds": round(self.seconds, 2)}


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds; None of nothing."""
    if not seconds:
        return None
    return {name: round(1000 * float(np.quantile(seconds, q)), 2) for name, q in QUANTILES.items()}


def sent(load: Load) -> Answers:
    """Runs a load in a process of its own."""
    done = subprocess.run([sys.executable, __file__], input=json.dumps(asdict(load)), text=True,
                          stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return Answers(**found | {"requests": [tuple(request) for request in found["requests"]]})


class Connection(asyncio.Protocol):
    """A kept connection, for one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._open = transport, True
        self._waiting: asyncio.Future[int] | None = None
        self._received = bytearray()
        self._status, self._whole, self._last = 0, -1, False

    async def ask(self, request: bytes) -> int:
        """The status of the answer; 0 where there is none."""
        self._received.clear()
        self._whole = -1
        self._waiting = asyncio.get_running_loop().create_future()
        if not self._open:
            return 0
        self._transport.write(request)
        return await self._waiting

    @property
    def usable(self) -> bool:
        """For another request: the last one was sent and answered whole."""
        return self._open and not self._last and not self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._whole < 0 and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            self._status, self._last = int(head[9:12]), b"\r\nconnection: close" in head
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._whole = end + 4 + int(length)
        if 0 <= self._whole <= len(self._received):
            self._answered(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._answered(0)

    def _answered(self, status: int) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(status)


class Generator:
    """Sends a load from one event loop."""

    def __init__(self, load: Load) -> None:
        self._load, self._free, self._opened = load, list[Connection](), 0
        self._places = asyncio.Semaphore(load.connections)
        self._requests = [_request(load, Path(file).read_bytes()) for file in load.files]
        self._answers: list[tuple[float, float, float, int]] = []

    async def run(self) -> Answers:
        self._began, cpu_s = time.perf_counter(), time.process_time()
        await (self._open_loop() if self._load.rate else self._closed_loop())
        seconds, cpu_s = self._now(), time.process_time() - cpu_s
        for connection in self._free:
            connection.close()
        return Answers(requests=sorted(self._answers), seconds=seconds, cpu_s=cpu_s,
                       opened=self._opened)

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(self._load.due()):
                if (ahead := due - self._now()) > 0:
                    await asyncio.sleep(ahead)
                group.create_task(self._one(number, due))

    async def _closed_loop(self) -> None:
        async def work(worker: int) -> None:
            number = worker
            while self._now() < self._load.seconds:
                if await self._one(number, self._now()) != 200:
                    await asyncio.sleep(REFUSED_WAIT_S)
                number += self._load.workers

        await asyncio.gather(*map(work, range(self._load.workers)))

    async def _one(self, number: int, due: float) -> int:
        request = self._requests[number % len(self._requests)]
        async with self._places:
            sent = self._now()
            try:
                async with asyncio.timeout(self._load.timeout_s):
                    status = await self._exchange(request)
            except (OSError, TimeoutError):
                status = 0
        self._answers.append((due, sent, self._now(), status))
        return status

    async def _exchange(self, request: bytes) -> int:
        connection = await self._connection()
        status = 0
        try:
            status = await connection.ask(request)
        finally:
            if status and connection.usable:
                self._free.append(connection)
            else:
                connection.close()
        return status

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        self._opened += 1
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._load.host, self._load.port)
        return connection

    def _now(self) -> float:
        return time.perf_counter() - self._began


def _request(load: Load, body: bytes) -> bytes:
    return (f"POST {load.path} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\n"
            f"content-type: application/octet-stream\r\ncontent-length: {len(body)}\r\n\r\n"
            ).encode() + body


def main() -> None:
    load = Load(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(_run(load))), sys.stdout)


async def _run(load: Load) -> Answers:
    return await Generator(load).run()


if __name__ == "__main__":
    main()
