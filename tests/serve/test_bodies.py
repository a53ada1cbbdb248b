"""Images in bodies and forms; whatever else is sent is refused, and nothing is ever fetched."""

from __future__ import annotations

import json
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from asgi import HOST, Reply, asked, body_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TestClient

URL = "/v1/categories/weave/score"
BATCH = "/v1/categories/weave/score-batch"
LIMIT = 2_000_000
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def client(serve) -> TestClient:
    return serve(max_body_bytes=LIMIT, max_batch_images=4)


def sent(client: TestClient, path: str, body: bytes, kind: str = FORM) -> Reply:
    return asked(client, path, body_of([body]),
                 headers=[HOST, (b"content-type", kind.encode("latin-1"))])


def part(data: bytes, *, name: str = "image", file: str | None = "a.png", more: bytes = b""
         ) -> bytes:
    named = f'; filename="{file}"' if file is not None else ""
    return (f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n'.encode() + more
            + b"\r\n" + data + b"\r\n")


END = b"--b--\r\n"


def test_an_image_comes_as_the_body_or_as_the_file_of_a_form(client: TestClient, picture: bytes
                                                             ) -> None:
    replies = [sent(client, URL, picture, kind) for kind in (
        "image/png", "image/jpeg", "application/octet-stream", "binary/octet-stream", "",
        "application/x-www-form-urlencoded", "IMAGE/PNG; q=1")]
    replies.append(sent(client, URL, part(b"x", name="note", file=None) + part(picture) + END))
    assert {reply.status for reply in replies} == {200}
    assert len({json.loads(reply.body)["score"] for reply in replies}) == 1


@pytest.mark.parametrize(("body", "code"), [
    (b"", "bad_form"), (END, "no_file"), (b"--b", "bad_form"),
    (part(b"text", file=None) + END, "no_file"),
    (part(b"x") + part(b"y") + END, "bad_form"),
    (part(b"x", file=None) * 2 + END, "bad_form"),
    (part(b"x" * 70_000, file=None) + END, "bad_form"),
    (part(b"x", more=b"X: y\r\n" * 20) + END, "bad_form"),
    (part(b"x", more=b"X: " + b"y" * 10_000 + b"\r\n") + END, "bad_form"),
    (b"--b\r\n\r\nx\r\n" + END, "bad_form"),
    (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "bad_form"),
    (b"\xff" * 1000, "bad_form"), (b"--c\r\n\r\n--c--", "bad_form"),
    (part(b"x").replace(b"\r\n", b"\n"), "bad_form"), (part(b"x"), "bad_form")], ids=range(15))
def test_a_form_that_holds_no_one_image_is_400(client: TestClient, body: bytes, code: str) -> None:
    reply = sent(client, URL, body)
    assert (reply.status, reply.code, reply.header("connection")) == (400, code, "close")


@pytest.mark.parametrize("kind", [
    "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary",
    "multipart/form-data; boundary=" + "b" * 300, 'multipart/form-data; boundary="',
    "multipart/form-data; boundary=\xff", "multipart/form-data; boundary=c",
    "multipart/form-data; boundary=b; boundary=c", "multipart/mixed; boundary=b"])
def test_tricks_with_the_boundary_are_no_fault_of_the_program(client: TestClient, picture: bytes,
                                                              kind: str) -> None:
    reply = sent(client, URL, part(picture) + END, kind)
    assert reply.status in (400, 422) and reply.code


@pytest.mark.parametrize("charset", ["unicode_escape", "raw_unicode_escape", "utf-7", "undefined",
                                     "idna", "punycode", "zip", "utf-16", "bogus", "\xff"])
def test_a_form_in_an_odd_charset_is_no_fault_of_the_program(client: TestClient, picture: bytes,
                                                             charset: str) -> None:
    body = part(picture, name="images", file="\\\\ud800+2AA-xn--a.png") + END
    reply = sent(client, BATCH, body, f"{FORM}; charset={charset}")
    assert reply.status in (200, 400)
    assert (reply.status == 400 and reply.code) or len(json.loads(reply.body)["results"]) == 1


def test_a_batch_has_a_limit_of_images(client: TestClient, picture: bytes) -> None:
    one = part(picture, name="images")
    assert sent(client, BATCH, one * 4 + END).status == 200
    reply = sent(client, BATCH, one * 5 + END)
    assert (reply.status, reply.code) == (400, "bad_form")


def test_a_form_that_was_cut_is_refused_whole(client: TestClient, picture: bytes) -> None:
    body = part(picture, name="images") * 2 + END
    for end in (len(body) - len(END), len(body) // 2 + 200, len(body) - 3):
        reply = sent(client, BATCH, body[:end])
        assert (reply.status, reply.code) == (400, "bad_form")


def test_a_form_over_the_limit_is_413(client: TestClient) -> None:
    for size, status in ((LIMIT - 200, 422), (LIMIT, 413)):
        assert sent(client, URL, part(b"x" * size) + END).status == status


@pytest.mark.parametrize("body", [
    part(b"\r\n--" * 400_000) + END, part(b"\r" * 1_900_000) + END, part(b"\r\n--b" * 1)[:-2]
    + b"x" * 1_900_000, b"-" * 1_900_000, b"\r\n" * 950_000, part(b"x", file="a" * 4000) * 400,
    part(b"", more=b"A: " + b"b" * 4000 + b"\r\n") * 400], ids=range(7))
def test_a_form_made_to_be_slow_is_not(client: TestClient, body: bytes) -> None:
    began = time.process_time()
    assert sent(client, URL, body).status in (400, 422)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "text/html", "text/uri-list",
                                  "application/xml", "application/ld+json; charset=utf-8",
                                  "APPLICATION/JSON", "application/x-yaml", "application/x-ndjson",
                                  "application/vnd.api+json"])
def test_words_about_an_image_are_not_an_image(client: TestClient, picture: bytes, kind: str
                                               ) -> None:
    reply = sent(client, URL, picture, kind)
    assert (reply.status, reply.code) == (400, "not_an_image")
    assert (sent(client, BATCH, picture, kind)).code == "not_a_form"


@pytest.fixture
def listening() -> Iterator[tuple[int, list[Any]]]:
    """A port, and whoever connects to it."""
    callers: list[Any] = []
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(0.05)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    callers.append(server.accept()[1])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        yield server.getsockname()[1], callers


def test_nothing_is_fetched_whatever_names_it(client: TestClient, listening) -> None:
    port, callers = listening
    for scheme in ("http://127.0.0.1:{}/a.png", "https://127.0.0.1:{}/", "s3://127.0.0.1:{}/a",
                   "//127.0.0.1:{}/a.png", "file:///etc/passwd#{}", "ftp://localhost:{}/a",
                   "http://[::ffff:127.0.0.1]:{}/", "\\\\127.0.0.1:{}\\a"):
        url = scheme.format(port)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'
        named = f'Content-Location: {url}\r\nContent-Type: message/external-body\r\n'.encode()
        replies = [
            sent(client, URL, json.dumps({"url": url, "image": url}).encode(), "application/json"),
            sent(client, URL, f"url={url}&image={url}".encode(),
                 "application/x-www-form-urlencoded"),
            sent(client, URL, url.encode(), "image/png"),
            sent(client, URL, url.encode(), "text/uri-list"),
            sent(client, URL, url.encode(), f'message/external-body; access-type=URL; URL="{url}"'),
            sent(client, URL, svg.encode(), "image/svg+xml"),
            sent(client, URL, part(url.encode(), file=None) + END),
            sent(client, URL, part(b"", file=url.replace("\\", "/"), more=named) + END),
            asked(client, URL, headers=[HOST, (b"content-location", url.encode()),
                                        (b"x-image-url", url.encode())])]
        assert [reply.status for reply in replies] == [400, 422, 422, 400, 422, 422, 400, 422, 422]
        assert client.post(URL, params={"url": url, "image": url}).status_code == 422
    time.sleep(0.1)
    assert callers == []


def png(width: int, height: int, *, rows: int, mode: int = 0, extra: bytes = b"") -> bytes:
    """A PNG that says it is so large, and has so many rows of zeros."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, mode,
                                                              0, 0, 0))
            + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bomb", [
    lambda: png(20_000, 20_000, rows=20_000), lambda: png(65_535, 65_535, rows=1),
    lambda: png(2**31 - 1, 2**31 - 1, rows=1), lambda: png(1, 2**31 - 1, rows=1),
    lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0"
            b"\x08\x02\x44\x01\0;",
    lambda: b"P6\n100000 100000\n255\n", lambda: b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 1, 1, 0, 0)],
    ids=["400 Mpx", "4 Gpx", "2^62 px", "a line", "gif", "ppm", "bmp"])
def test_a_bomb_is_422_at_once_and_takes_no_memory(client: TestClient, bomb: Any) -> None:
    data = bomb()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    reply = sent(client, URL, data, "image/png")
    assert (reply.status, bool(reply.code)) == (422, True)
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(
    [part(b""), part(b"x", file=None), END, b"--b", b"\r\n", b"--", b"\x89PNG\r\n\x1a\n",
     b'Content-Disposition: form-data; name="a"', b'; filename="', b"GIF89a", b"\xff\xd8\xff"])),
    max_size=6).map(b"".join),
    kind=st.one_of(st.sampled_from([FORM, "image/png", "", "multipart/form-data; boundary=\"b\"",
                                    FORM + "; charset=utf-7", "application/json"]),
                   st.text(st.characters(max_codepoint=255), max_size=40)),
    path=st.sampled_from([URL, BATCH]))
def test_no_body_whatever_is_in_it_is_a_fault_of_the_program(client: TestClient, body: bytes,
                                                             kind: str, path: str) -> None:
    reply = sent(client, path, body, kind)
    assert reply.status in (200, 400, 422)
    assert reply.status == 200 or reply.code
