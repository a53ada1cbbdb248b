"""`benchmarks/load.py` against a server that stalls, refuses and breaks off."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def module() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["load"] = loaded  # dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded


load = module()


class Server(ThreadingHTTPServer):
    """Stalls, for all alike, from `stalls[0]` to `stalls[1]` seconds after the first request."""

    request_queue_size = 1000
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.stalls, self.statuses = (0.0, 0.0), itertools.repeat(200)
        self.work_s = 0.0
        self.came: list[float] = []
        self.bodies: list[bytes] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        with server.lock:
            server.came.append(time.perf_counter())
            server.bodies.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            since = time.perf_counter() - server.came[0]
            status = next(server.statuses)
        low, high = server.stalls
        time.sleep(server.work_s + (high - since if low <= since < high else 0))
        with server.lock:
            server.at_once -= 1
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 50_000)
    return str(tmp_path / "a"), str(tmp_path / "b")


def load_of(server: Server, files: tuple[str, ...], **settings: Any) -> Any:
    return load.Load(host="127.0.0.1", port=server.server_port, path="/", files=files, **settings)


def test_random_times_have_the_rate_and_are_those_of_the_seed(server: Server) -> None:
    due = list(load_of(server, (), rate=100, seconds=100).due())
    assert len(due) == pytest.approx(10_000, rel=0.05) and due == sorted(due)
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert due == list(load_of(server, (), rate=100, seconds=100).due())
    assert due != list(load_of(server, (), rate=100, seconds=100, seed=1).due())


def test_requests_are_sent_when_due_and_answers_counted(server: Server,
                                                        files: tuple[str, ...]) -> None:
    server.statuses = itertools.cycle([200, 503, 200, 0])
    answers = load.sent(load_of(server, files, rate=40, seconds=1.99, poisson=False))
    assert [request[0] for request in answers.requests] == pytest.approx(
        [i / 40 for i in range(1, 80)])
    figures = answers.figures()
    assert figures["statuses"] == {"0": 19, "200": 40, "503": 20}
    assert figures["accepted"] == pytest.approx(40 / 79, abs=1e-4)
    assert figures["goodput_per_s"] == pytest.approx(20, rel=0.1)
    assert figures["refused_ms"]["p50"] < 500 and 0 < answers.cpu_s < 2
    assert sorted(set(server.bodies)) == [b"a" * 50_000, b"b" * 50_000]
    gaps = sorted(b - a for a, b in itertools.pairwise(server.came))
    assert gaps[len(gaps) // 2] == pytest.approx(1 / 40, rel=0.2)


def test_a_stall_shows_in_the_latency_of_every_request_that_was_due_in_it(
        server: Server, files: tuple[str, ...]) -> None:
    server.stalls = 0.5, 1.5
    load_50 = load_of(server, files, rate=50, seconds=3, poisson=False)
    answers = load.sent(load_50)
    assert len(answers.requests) == 149  # as many as without a stall
    slow = [(due, done - due) for due, _, done, _ in answers.requests if done - due > 0.25]
    assert len(slow) == pytest.approx(0.75 * 50, abs=6)
    ends = slow[0][0] + slow[0][1]
    assert all(latency >= ends - due - 0.05 for due, latency in slow)  # each to its end
    assert max(latency for _, latency in slow) == pytest.approx(1, abs=0.2)


def test_a_request_that_finds_no_connection_counts_from_when_it_was_due(
        server: Server, files: tuple[str, ...]) -> None:
    server.work_s = 0.1
    answers = load.sent(load_of(server, files, rate=20, seconds=1, poisson=False, connections=1))
    assert server.most_at_once == 1 and len(answers.requests) == 19 and answers.opened == 1
    last = answers.requests[-1]
    assert last[2] - last[0] > 0.8 and last[2] - last[1] < 0.4


def test_workers_wait_for_their_answers(server: Server, files: tuple[str, ...]) -> None:
    server.work_s = 0.05
    answers = load.sent(load_of(server, files, workers=3, seconds=1))
    assert server.most_at_once == 3 and answers.opened == 3
    assert len(answers.requests) == pytest.approx(3 / 0.05, rel=0.3)


def test_a_server_that_never_answers_is_given_up(server: Server, files: tuple[str, ...]) -> None:
    server.work_s = 5
    answers = load.sent(load_of(server, files, rate=10, seconds=0.5, timeout_s=0.3))
    assert answers.requests and all(status == 0 for *_, status in answers.requests)
    assert answers.seconds < 2
