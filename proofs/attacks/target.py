"""An endpoint that is attacked: how to reach it, and what it uses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import psutil

SCORE = b"/v1/categories/weave/score"
STARTED_S = 120
ANY_CERTIFICATE = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ANY_CERTIFICATE.check_hostname, ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE
PROCESSES = {"proxy": "ray::ProxyActor", "ingress": "ray::ServeReplica:igd:Ingress"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where attacks go.

    Attributes:
        tls: whether a reverse proxy with a certificate of its own stands in front.
        picture: PNG that the model scores.
        token: that requests carry; the endpoint asks for one where there is any.
    """

    port: int
    picture: bytes
    processes: dict[str, psutil.Process]
    tls: bool = False
    token: bytes = b""

    def knock(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection on which nothing has been said, TLS included."""
        plain = socket.create_connection(("127.0.0.1", self.port), 30, source_address=(source, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        plain = self.knock(source)
        return ANY_CERTIFICATE.wrap_socket(plain) if self.tls else plain

    def post(self, *headers: bytes, body: bytes = b"", path: bytes = SCORE) -> bytes:
        """A request as it goes over the wire; without a length of its own where it has a body."""
        if self.token:
            headers = (*headers, b"Authorization: Bearer " + self.token)
        return b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"",
                             body])

    def scored(self, source: str = "127.0.0.1") -> bool:
        """Whether a well-behaved client is answered."""
        with self.connect(source) as client:
            client.sendall(self.post(b"Content-Length: %d" % len(self.picture),
                                     b"Connection: close", body=self.picture))
            return answer(client, 60).startswith(b"HTTP/1.1 200")


def answer(client: socket.socket, wait_s: float) -> bytes:
    """All that comes back until the other side closes (then `CLOSED` is its end), or for so long.
    """
    client.settimeout(wait_s)
    came = b""
    try:
        while data := client.recv(65536):
            came += data
    except TimeoutError:
        return came
    except (OSError, ssl.SSLError):
        return came + b"CLOSED"
    return came + b"CLOSED"


@dataclass(kw_only=True)
class Usage:
    """What an attack cost, beside what its own clients saw.

    Attributes:
        rss_mb: the most that each process grew by.
        others_ms: how long a client from another address waited for each of its images.
        failed: images of that client without a result.
    """

    rss_mb: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    others_ms: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def others(self) -> dict[str, float]:
        return {"images": len(self.others_ms), "failed": self.failed,
                "p50_ms": round(median(self.others_ms)), "max_ms": round(max(self.others_ms))}


@contextlib.contextmanager
def watched(target: Target) -> Iterator[Usage]:
    """Measures the endpoint's processes, and a client that scores an image ten times a second."""
    usage, over = Usage(), threading.Event()
    before = {name: one.memory_info().rss for name, one in target.processes.items()}
    cpu = {name: sum(one.cpu_times()[:2]) for name, one in target.processes.items()}
    most = dict(before)

    def sample() -> None:
        while not over.wait(0.02):
            for name, one in target.processes.items():
                most[name] = max(most[name], one.memory_info().rss)

    def neighbour() -> None:
        while not over.wait(0.1) or not usage.others_ms:
            began = time.perf_counter()
            try:
                usage.failed += not target.scored("127.0.0.2")
            except OSError:
                usage.failed += 1
            usage.others_ms.append(1000 * (time.perf_counter() - began))

    threads = [threading.Thread(target=each) for each in (sample, neighbour)]
    for thread in threads:
        thread.start()
    try:
        yield usage
    finally:
        over.set()
        for thread in threads:
            thread.join()
        usage.rss_mb = {name: (most[name] - before[name]) >> 20 for name in before}
        usage.cpu_s = {name: round(sum(one.cpu_times()[:2]) - cpu[name], 2)
                       for name, one in target.processes.items()}


@contextlib.contextmanager
def serving(models: str, picture: bytes, token: bytes = b"") -> Iterator[Target]:
    """`igd-ray serve` over models, with one scorer."""
    tokens = {"IGD_SERVE_TOKENS": f"line:{token.decode()}"} if token else {}
    port = free_port()
    command = [sys.executable, "-m", "igd.cli", "serve", "--models", models, "--port", str(port),
               "--scorers", "1"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **tokens},
                          stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            _wait_until_ready(process, port)
            yield Target(port=port, picture=picture, processes=_processes(process.pid),
                         token=token)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + STARTED_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _processes(pid: int) -> dict[str, psutil.Process]:
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            found.update({name: child for name, start in PROCESSES.items()
                          if title.startswith(start)})
    assert set(found) == set(PROCESSES), found
    return found
