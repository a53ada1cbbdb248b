"""The client, against the real application on loopback, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from serving import endpoint_of, token

from igd.client import VARIABLE, AsyncClient, Client
from igd.errors import ConfigError, DataError, IgdError, ImageError, ModelError, StorageError
from igd.score.scorer import Scorer
from igd.serve.app import create_app
from igd.serve.config import EndpointConfig

LIMIT = 100_000
TOKEN = "the-token-of-the-line-0123456789"
Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls one method of a client of either kind."""
    def of_sync(url: str, method: str, *arguments: Any, **settings: Any) -> Any:
        with Client(url, **settings) as client:
            return getattr(client, method)(*arguments)

    async def of_async(url: str, method: str, *arguments: Any, **settings: Any) -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, method)(*arguments)

    return of_sync if request.param == "sync" else (
        lambda *arguments, **settings: asyncio.run(of_async(*arguments, **settings)))


@contextlib.contextmanager
def listening(config: EndpointConfig) -> Iterator[str]:
    """The application over tiny models, on a port of its own."""
    endpoint = endpoint_of(config)
    server = uvicorn.Server(uvicorn.Config(create_app(endpoint), port=0, ws="none",
                                           log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not (server.started and endpoint.catalogue.settled):
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def url(tiny_models: Path) -> Iterator[str]:
    with listening(EndpointConfig(models=str(tiny_models), follow_s=3600,
                                  max_body_bytes=LIMIT)) as url:
        yield url


@pytest.fixture(scope="module")
def photographs(tiny_data: Path) -> list[Path]:
    return sorted((tiny_data / "weave" / "test").rglob("*.png"))


class Misbehaving:
    """A server that does, request by request, what it is told, and the last of it for ever.

    Told: a status, a status and headers or a body, `hang`, or, once the request was read, `reset`
    or `close`.
    """

    url = ""

    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.asked: list[float] = []
        self.ids: list[str] = []
        self.over = threading.Event()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.asked.append(time.monotonic())
        self.ids.append(handler.headers.get("x-request-id", ""))
        order = self.orders.pop(0) if len(self.orders) > 1 else self.orders[0]
        if order == "hang":
            self.over.wait(30)
        elif order == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                          struct.pack("ii", 1, 0))
        elif order != "close":
            self.answer(handler, *(order if isinstance(order, tuple) else (order,)))
        handler.close_connection = True

    def answer(self, handler: BaseHTTPRequestHandler, status: int,
               headers: dict[str, str] | None = None, body: bytes | None = None) -> None:
        if body is None:
            body = json.dumps({"error": "told so", "code": "some_code",
                               "request_id": self.ids[-1]}).encode()
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def bad() -> Iterator[Misbehaving]:
    told = Misbehaving()

    class Handler(BaseHTTPRequestHandler):
        do_GET = do_POST = lambda self: told.serve(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def shutdown_request(self, request: Any) -> None:
            self.close_request(request)  # a polite end would hide a reset

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    told.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = (200, {}, json.dumps({"categories": [], "details": []}).encode())
BUSY = (503, {"retry-after": "0"})


def test_an_image_is_answered_as_a_scorer_does(ask: Ask, url: str, photographs: list[Path],
                                               tiny_models: Path) -> None:
    path = photographs[0]
    scorer = Scorer.load(str(tiny_models / "weave"))
    expected = scorer.score([np.asarray(Image.open(path))])
    for image in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        reply = ask(url, "score", "weave", image)
        assert reply.score == expected.scores[0] and reply.heatmap is None
    assert ask(url, "score", "weave", path, "png").heatmap
    assert ask(url, "score", "weave", path, "overlay").overlay


def test_pictures_are_grey_heatmaps_and_coloured_overlays(ask: Ask, url: str,
                                                          photographs: list[Path]) -> None:
    for method, mode in (("heatmap", "L"), ("overlay", "RGB")):
        picture = Image.open(io.BytesIO(ask(url, method, "weave", photographs[0])))
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (64, 64))


def test_batches_are_split_and_keep_their_order(ask: Ask, url: str, photographs: list[Path],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {path: ask(url, "score", "weave", path).sha256 for path in photographs}
    paths = (photographs * 2)[:17]
    expected = [(path.name, alone[path]) for path in paths]
    monkeypatch.setattr("igd.client.BATCH_IMAGES", 8)
    for most_bytes in (1 << 20, 3 * photographs[0].stat().st_size):
        monkeypatch.setattr("igd.client.BATCH_BYTES", most_bytes)
        items = ask(url, "score_batch", "weave", iter(paths))
        assert [(item.name, item.result.sha256) for item in items] == expected
    assert ask(url, "score_batch", "weave", []) == []


def test_one_bad_image_of_a_batch_fails_alone(ask: Ask, url: str, photographs: list[Path]) -> None:
    good = photographs[0].read_bytes()
    items = ask(url, "score_batch", "weave", [good, b"no image", io.BytesIO(good)])
    assert [(item.name, item.error and item.error.code) for item in items] == [
        ("0", None), ("1", "not_image"), ("2", None)]


def test_a_file_whose_name_is_no_text_is_scored(ask: Ask, url: str, photographs: list[Path],
                                                tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"part-\xff.png")
    path.write_bytes(photographs[0].read_bytes())
    item, = ask(url, "score_batch", "weave", [path])
    assert item.result is not None and item.name == "part-\N{REPLACEMENT CHARACTER}.png"


def test_requests_hold_at_most_64_images(ask: Ask, bad: Misbehaving) -> None:
    item = {"name": "", "error": {"error": "", "code": "", "request_id": ""}}
    replies = [json.dumps({"results": [item] * count}).encode() for count in (64, 64, 2)]
    bad.orders = [BUSY, *((200, {}, reply) for reply in replies)]
    assert len(ask(bad.url, "score_batch", "weave", [b"x"] * 130)) == 130
    assert len(bad.asked) == 4


def test_health_and_categories(ask: Ask, url: str) -> None:
    assert ask(url, "ready") is True
    assert [(item.category, item.state) for item in ask(url, "categories")] == [
        ("washer", "ready"), ("weave", "ready")]


@pytest.mark.parametrize(("category", "image", "kind", "words"), [
    ("weave", b"no image", ImageError, "not_image"), ("bottle", b"", ModelError, "no model"),
    ("a/../b", b"", IgdError, "404"), ("weave", "/nowhere.png", DataError, "/nowhere.png"),
    ("weave", io.StringIO("text"), DataError, "'rb'"),
    ("weave", bytes(LIMIT + 1), DataError, "413 body_too_large")])
def test_what_is_wrong_with_a_request_is_said(ask: Ask, url: str, category: str, image: Any,
                                              kind: type[IgdError], words: str) -> None:
    with pytest.raises(kind, match=words):
        ask(url, "score", category, image)


def test_an_unusable_image_has_its_reason_and_the_id_of_the_request(ask: Ask, url: str) -> None:
    with pytest.raises(ImageError, match=r"\(request [0-9a-f]{32}\)") as caught:
        ask(url, "heatmap", "weave", b"")
    assert caught.value.reason == "empty"


@pytest.mark.parametrize("trouble", [BUSY, "reset", "close"])
def test_what_passes_is_tried_again_under_the_same_id(ask: Ask, bad: Misbehaving,
                                                      trouble: Any) -> None:
    bad.orders = [trouble, trouble, GOOD]
    assert ask(bad.url, "categories") == []
    assert len(bad.asked) == 3 and len(set(bad.ids)) == 1 and len(bad.ids[0]) == 32


@pytest.mark.parametrize("trouble", [BUSY, "reset", "close"])
def test_there_are_as_many_tries_as_asked_for(ask: Ask, bad: Misbehaving, trouble: Any) -> None:
    bad.orders = [trouble]
    with pytest.raises(StorageError, match="3 tries") as caught:
        ask(bad.url, "categories", tries=3)
    assert len(bad.asked) == 3 and bad.ids[0] in str(caught.value)


@pytest.mark.parametrize(("status", "kind"), [
    (400, ConfigError), (401, ConfigError), (403, ConfigError), (404, ConfigError),
    (408, StorageError), (413, DataError), (422, ImageError), (429, ConfigError),
    (500, StorageError), (504, StorageError), (302, ConfigError)])
def test_other_answers_are_final(ask: Ask, bad: Misbehaving, status: int,
                                 kind: type[IgdError]) -> None:
    for body in (None, b"<html>a proxy</html>"):
        bad.orders = [(status, {"retry-after": "0", "x-request-id": "of-the-proxy"}, body)]
        with pytest.raises(kind, match="of-the-proxy") as caught:
            ask(bad.url, "score", "weave", b"x")
        assert type(caught.value) is kind
    assert len(bad.asked) == 2


def test_it_waits_as_long_as_it_is_asked_to_and_a_bit(ask: Ask, bad: Misbehaving) -> None:
    bad.orders = [(503, {"retry-after": "1"}), GOOD]
    ask(bad.url, "categories")
    assert 1 <= bad.asked[1] - bad.asked[0] < 1.25 + 0.5


def test_it_does_not_wait_for_ever(ask: Ask, bad: Misbehaving,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd.client.LONGEST_WAIT_S", 0.1)
    bad.orders = [(503, {"retry-after": "99999"}), GOOD]
    ask(bad.url, "categories")
    assert bad.asked[1] - bad.asked[0] < 0.7


def test_waits_grow_where_nothing_is_said(bad: Misbehaving,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("igd.client.time.sleep", waits.append)
    bad.orders = [(503, {}), (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), "reset", GOOD]
    Client(bad.url).categories()
    assert [wait // 0.2 for wait in waits] == [1, 2, 4]


@pytest.mark.parametrize("order", ["hang", (503, {"retry-after": "2"}), "reset"])
def test_the_time_for_a_request_holds_over_all_its_tries(ask: Ask, bad: Misbehaving,
                                                         order: Any) -> None:
    bad.orders, began = [order], time.monotonic()
    with pytest.raises(StorageError) as caught:
        ask(bad.url, "categories", timeout_s=0.5, tries=100)
    assert time.monotonic() - began < 1.5 and bad.ids[0] in str(caught.value)
    if order == "hang":
        assert "no answer within 0.5 s" in str(caught.value) and len(bad.asked) == 1


def test_where_nothing_listens(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StorageError, match=f"endpoint {url}: cannot be reached"):
            ask(url, "categories", tries=2)
        assert ask(url, "ready") is False


def test_an_endpoint_that_is_not_ready_is_asked_once(ask: Ask, bad: Misbehaving) -> None:
    bad.orders = [503]
    assert ask(bad.url, "ready") is False and len(bad.asked) == 1
    bad.orders = [404]
    with pytest.raises(ConfigError):
        ask(bad.url, "ready")


def test_a_newer_endpoint_is_understood_and_something_else_is_not(ask: Ask,
                                                                  bad: Misbehaving) -> None:
    bad.orders = [(200, {}, b'{"categories": [], "details": [], "since": 2030}')]
    assert ask(bad.url, "categories") == []
    bad.orders = [(200, {}, b"<html>welcome</html>")]
    with pytest.raises(StorageError, match="not that of an igd-ray endpoint"):
        ask(bad.url, "categories")


@pytest.fixture(scope="module")
def closed_url(tiny_models: Path) -> Iterator[str]:
    """An endpoint that asks for a token."""
    with listening(EndpointConfig(models=str(tiny_models), follow_s=3600,
                                  tokens=(token("line", TOKEN),))) as url:
        yield url


def test_a_token_is_given_or_of_the_environment(ask: Ask, closed_url: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ask(closed_url, "categories", token=TOKEN)) == 2
    with pytest.raises(ConfigError, match="401 unauthorized"):
        ask(closed_url, "categories")
    monkeypatch.setenv(VARIABLE, TOKEN + "\n")
    assert len(ask(closed_url, "categories")) == 2
    with pytest.raises(ConfigError, match="401 unauthorized"):
        ask(closed_url, "categories", token="")


def test_a_token_is_never_shown(ask: Ask, bad: Misbehaving,
                                caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bad.orders = ["reset", 503, 401]
    with pytest.raises(ConfigError) as caught:
        ask(bad.url, "categories", token=TOKEN)
    for bad_token in (f"{TOKEN}\nx: y", TOKEN + "ä"):
        with pytest.raises(ConfigError) as refused:
            Client(bad.url, bad_token)
        assert "the-token" not in str(refused.value)
    shown = [repr(Client(bad.url, TOKEN)), repr(AsyncClient(bad.url, TOKEN)), caplog.text,
             repr(vars(Client(bad.url, TOKEN))), str(caught.value)]
    assert len(caplog.text) > 1000 and TOKEN not in "".join(shown)


@pytest.mark.parametrize(("url", "settings"), [
    ("127.0.0.1:8000", {}), ("ftp://host", {}), ("http://", {}), ("", {}), ("http://host:x", {}),
    ("http://line:secret@host", {}), ("http://host", {"tries": 0}),
    ("http://host", {"timeout_s": 0})])
def test_settings_that_cannot_be(url: str, settings: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match=r"expected|give the token") as caught:
            kind(url, **settings)
        assert "secret" not in str(caught.value)


def test_a_client_asks_several_things_at_once(url: str, photographs: list[Path]) -> None:
    async def scores() -> list[float]:
        async with AsyncClient(url, tries=30) as client:  # there are four places
            replies = await asyncio.gather(*(client.score("weave", path)
                                             for path in photographs * 2))
        return [reply.score for reply in replies]

    found = asyncio.run(scores())
    assert found[:len(photographs)] == found[len(photographs):]
    assert len(set(found)) == len(photographs)


def test_a_closed_client_has_no_connections(url: str) -> None:
    client = Client(url)
    client.close()
    with pytest.raises(RuntimeError):
        client.ready()
