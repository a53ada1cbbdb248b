"""Clients of an endpoint that runs, and the processes it consists of."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil

SCORE = "/v1/categories/weave/score"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Load:
    """Clients that ask again and again until they are told to stop.

    Attributes:
        answers: (status, model version, score) or the error, by how often.
    """

    url: str
    image: bytes
    clients: int = 3
    path: str = SCORE
    answers: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        """Waits for so many more."""
        wanted, deadline = self.answers.total() + answers, time.monotonic() + 60
        while self.answers.total() < wanted:
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.01)

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                try:
                    reply = client.post(self.url + self.path, content=self.image)
                    said = reply.json() if reply.status_code == 200 else {}
                    self.answers[reply.status_code, said.get("model_version"),
                                 said.get("score")] += 1
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__, None, None] += 1
                    time.sleep(0.05)


def replicas_below(pid: int, kind: str) -> list[psutil.Process]:
    """Replicas of a deployment that live, of a cluster that a process has started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:igd:{kind}" in " ".join(process.cmdline()):
                found.append(process)
    return found
