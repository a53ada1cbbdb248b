"""What a request passes first: names, tokens, sizes, times, and what is told of it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

import pytest
from asgi import HOST, Reply, ask, asked, body_of, in_loop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TestClient, endpoint_of, token

from igd.serve import tokens
from igd.serve.config import LOOPBACK, EndpointConfig
from igd.serve.endpoint import Endpoint

URL = "/v1/categories/weave/score"
BATCH = "/v1/categories/weave/score-batch"
LIMIT = 100_000
OLD, NEW = "the-old-token-0123456789", "the-new-token-0123456789"


@pytest.fixture(scope="module")
def client(serve) -> TestClient:
    return serve(hosts=(*LOOPBACK, "Camera.example"), max_body_bytes=LIMIT,
                 max_batch_bytes=2 * LIMIT)


@pytest.fixture(scope="module")
def guarded(serve) -> TestClient:
    return serve(tokens=(token("line-1", OLD), token("line-2", NEW)))


@pytest.fixture(scope="module")
def quick(tiny_models) -> Endpoint:
    return endpoint_of(EndpointConfig(models=str(tiny_models), follow_s=3600, timeout_s=2,
                                      body_timeout_s=0.4, in_flight=1, reading=1))


@pytest.fixture(scope="module")
def quick_client(serve, quick: Endpoint) -> TestClient:
    return serve(quick)


def by_host(client: TestClient, host: bytes, path: str = "/v1/categories") -> Reply:
    return asked(client, path, method="GET", headers=[(b"host", host)])


@pytest.mark.parametrize("host", [
    b"localhost", b"LOCALHOST:8000", b"127.0.0.1:1", b"[::1]", b"[::1]:8000",
    b"camera.EXAMPLE:443"])
def test_it_answers_to_its_names(client: TestClient, host: bytes) -> None:
    assert by_host(client, host).status == 200


@pytest.mark.parametrize("host", [
    b"", b"evil.example", b"localhost.evil.example", b"localhost@evil.example", b"localhost:80:1",
    b"[::1]evil.example", b"[::1", b"::1", b"localhost.", b"localhost ", b"localhost,evil",
    b"127.0.0.1.nip.example", b"10.1.2.3", b"\xe9", b"localhost:999999"])
def test_by_any_other_name_it_is_not_called(client: TestClient, host: bytes) -> None:
    reply = by_host(client, host)
    assert (reply.status, reply.code) == (403, "host_not_allowed")


def test_a_request_without_a_host_is_refused(client: TestClient) -> None:
    assert asked(client, "/v1/categories", method="GET", headers=[]).status == 403


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_come_by_an_address_but_rebound_names_do_not(client: TestClient, path: str) -> None:
    assert {by_host(client, host, path).status for host in (b"10.1.2.3:8000", b"[fd00::1]", b"")
            } == {200}
    assert by_host(client, b"evil.example", path).status == 403


@pytest.mark.parametrize("name", [b"host", b"authorization", b"content-length", b"origin",
                                  b"content-type", b"transfer-encoding"])
def test_a_header_that_is_there_twice_is_refused(client: TestClient, name: bytes) -> None:
    value = {b"host": b"localhost", b"content-length": b"0"}.get(name, b"chunked")
    headers = [header for header in [HOST] if name != b"host"] + [(name, value)] * 2
    reply = asked(client, URL, headers=headers)
    assert (reply.status, reply.code, reply.header("connection")) == (400, "bad_request", "close")


@pytest.mark.parametrize(("more", "status"), [
    ([(b"x-%d" % n, b"y") for n in range(127)], 200),
    ([(b"x-%d" % n, b"y") for n in range(128)], 431), ([(b"x", b"y" * 65_000)], 200),
    ([(b"x", b"y" * 65_536)], 431)], ids=range(4))
def test_headers_have_a_limit(client: TestClient, more: Any, status: int) -> None:
    reply = asked(client, "/v1/categories", method="GET", headers=[HOST, *more])
    assert reply.status == status
    assert status == 200 or reply.code == "headers_too_large"


@pytest.mark.parametrize("encoding", [b"gzip, chunked", b"identity", b"chunked, chunked", b""])
def test_a_body_in_another_transfer_encoding_is_refused(client: TestClient, encoding: bytes
                                                        ) -> None:
    reply = asked(client, URL, headers=[HOST, (b"transfer-encoding", encoding)])
    assert (reply.status, reply.code) == (400, "bad_request")


@pytest.mark.parametrize(("origin", "status"), [
    (b"http://localhost:8000", 200), (b"https://LOCALHOST:8000", 200), (b"null", 403),
    (b"http://evil.example", 403), (b"http://localhost", 403), (b"http://localhost:8001", 403),
    (b"http://localhost:8000.evil.example", 403), (b"http://[::1", 403), (b"file://", 403),
    (b"http://evil@localhost:8000", 403), (b"http://localhost:8000/", 403), (b"\xff", 403)])
def test_pages_of_other_sites_are_refused(client: TestClient, picture: bytes, origin: bytes,
                                          status: int) -> None:
    reply = asked(client, URL, body_of([picture]),
                  headers=[(b"host", b"localhost:8000"), (b"origin", origin)])
    assert reply.status == status
    assert status == 200 or reply.code == "cross_origin"
    assert reply.header("access-control-allow-origin") is None


@pytest.mark.parametrize("authorization", [
    "", "Bearer", "Bearer ", f"Basic {OLD}", OLD, f"Bearer {OLD}x", f"Bearer {OLD[:-1]}",
    f"Bearer{OLD}", f"Bearer {OLD} {NEW}", f"Bearer {OLD.upper()}", "Bearer \xff", "Bearer " * 999])
def test_without_a_right_token_nothing_is_told(guarded: TestClient, authorization: str) -> None:
    for path, method in (("/v1/categories", "GET"), (URL, "POST"), ("/metrics", "GET"),
                         ("/openapi.json", "GET"), ("/nothing", "GET")):
        reply = asked(guarded, path, method=method, headers=[
            HOST, (b"authorization", authorization.encode("latin-1"))])
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert reply.header("www-authenticate") == "Bearer"


def test_two_tokens_hold_at_once_and_health_needs_none(guarded: TestClient) -> None:
    for value in (f"Bearer {OLD}", f"bearer {NEW}", f"Bearer  {NEW} "):
        assert asked(guarded, "/v1/categories", method="GET", headers=[
            HOST, (b"authorization", value.encode())]).status == 200
    assert {guarded.get(path).status_code for path in ("/healthz", "/readyz")} == {200}


@pytest.mark.parametrize("value", [f"Bearer {OLD}", f"Bearer {NEW}", "Bearer x", f"Basic {OLD}", ""
                                   ])
def test_every_token_is_compared_whichever_was_sent(monkeypatch: pytest.MonkeyPatch, value: str
                                                    ) -> None:
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    tokens.name_of((token("a", OLD), token("b", NEW), token("c", OLD + "c")), value)
    assert len(compared) == 3 and all(len(a) == len(b) == 64 for a, b in compared)


def test_tokens_are_in_no_log_and_no_reply(guarded: TestClient, picture: bytes,
                                           caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [guarded.post(URL, content=picture, headers={"authorization": f"Bearer {secret}"}).text
             for secret in (OLD, NEW, "wrong-token-0123456789")]
    said = caplog.text + "".join(texts)
    assert "for line-1" in said and "for line-2" in said
    for secret in (OLD, NEW, "wrong-token-0123456789"):
        assert secret not in said and token("", secret).sha256 not in said


def unread() -> Any:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    return receive


@pytest.mark.parametrize("length", [b"100001", b"300000000", b"9" * 19, b"9" * 5000])
def test_a_body_that_says_it_is_too_large_is_not_read(client: TestClient, length: bytes) -> None:
    reply = asked(client, URL, unread(), headers=[HOST, (b"content-length", length)])
    assert (reply.status, reply.code, reply.header("connection")) == (
        413, "body_too_large", "close")


@pytest.mark.parametrize("length", [b"", b"-1", b"+5", b"5x", b"\xb2", b"0x10", b"1 1"])
def test_a_length_that_is_no_number_is_no_fault_of_the_program(client: TestClient, length: bytes
                                                               ) -> None:
    assert asked(client, URL, body_of([b"x"]),
                 headers=[HOST, (b"content-length", length)]).status == 422


def test_a_stream_is_cut_off_within_a_chunk_of_the_limit(client: TestClient) -> None:
    for path, limit in ((URL, LIMIT), (BATCH, 2 * LIMIT)):
        sent = []

        def chunks(sent: list[int] = sent) -> Any:
            while True:
                sent.append(1000)
                yield b"x" * 1000

        reply = asked(client, path, body_of(chunks()), headers=[
            HOST, (b"content-type", b"multipart/form-data; boundary=b")]
            if path == BATCH else [HOST])
        assert reply.status in ((413,) if path == URL else (400, 413))
        assert sum(sent) <= limit + 1000


def test_many_tiny_chunks_cost_seconds_at_most(client: TestClient) -> None:
    began = time.process_time()
    reply = asked(client, URL, body_of(b"abcdef" for _ in range(100_000)))
    assert (reply.status, reply.code) == (413, "body_too_large")
    reply = asked(client, URL, body_of(b"" for _ in range(100_000)))
    assert (reply.status, reply.code) == (422, "empty")
    assert time.process_time() - began < 6


def test_a_slow_body_is_408_and_makes_room(quick_client: TestClient, quick: Endpoint,
                                           picture: bytes) -> None:
    async def both() -> tuple[Reply, Reply]:
        slow = asyncio.create_task(ask(quick_client, URL, body_of([b"x"], then="silence")))
        await asyncio.sleep(0.05)
        assert quick.reading.taken == 1
        refused = await ask(quick_client, URL, body_of([picture]))
        return await slow, refused

    slow, refused = in_loop(quick_client, both)
    assert (slow.status, slow.code, slow.header("connection")) == (408, "body_timeout", "close")
    assert (refused.status, refused.code, refused.header("retry-after")) == (
        503, "overloaded", "1")
    assert (quick.reading.taken, quick.gate.taken) == (0, 0)
    assert asked(quick_client, URL, body_of([picture])).status == 200


def test_a_body_that_trickles_in_is_408_all_the_same(quick_client: TestClient) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    began = time.monotonic()
    assert asked(quick_client, URL, receive).status == 408
    assert time.monotonic() - began < 5


def hanging(quick: Endpoint, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Makes scorers that never answer; set once one has been asked."""
    asked_one = asyncio.Event()

    async def score(_: object) -> None:
        asked_one.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(quick.scorers, "score", score)
    return asked_one


def test_no_answer_in_time_is_504_and_gives_its_place_back(
        quick_client: TestClient, quick: Endpoint, picture: bytes,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with monkeypatch.context() as patch:
        hanging(quick, patch)
        reply = asked(quick_client, URL, body_of([picture]))
    assert (reply.status, reply.code) == (504, "timeout")
    assert f"POST '{URL}': 504" in caplog.text
    assert quick.gate.taken == 0
    assert asked(quick_client, URL, body_of([picture])).status == 200


def test_who_goes_away_while_scoring_gives_the_place_back(
        quick_client: TestClient, quick: Endpoint, picture: bytes,
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone() -> None:  # Ray Serve cancels the request
        scoring = hanging(quick, monkeypatch)
        task = asyncio.create_task(ask(quick_client, URL, body_of([picture])))
        await scoring.wait()
        assert quick.gate.taken == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(quick_client, gone)
    assert (quick.gate.taken, quick.reading.taken) == (0, 0)


def test_who_goes_away_while_sending_is_no_fault_of_the_program(
        quick_client: TestClient, quick: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    reply = asked(quick_client, URL, body_of([b"x"], then="gone"))
    assert (reply.status, reply.code) == (400, "incomplete_body")
    assert (quick.reading.taken, caplog.text) == (0, "")


def test_bodies_together_are_bounded_in_bytes(serve, picture: bytes, tiny_models) -> None:
    endpoint = endpoint_of(EndpointConfig(models=str(tiny_models), follow_s=3600,
                                          body_bytes=len(picture)))
    client = serve(endpoint)
    reply = asked(client, URL, body_of([picture, b"x"]))
    assert (reply.status, reply.code, reply.header("retry-after")) == (503, "overloaded", "1")
    assert endpoint.bodies.held == 0
    assert asked(client, URL, body_of([picture])).status == 200 and endpoint.bodies.held == 0


@pytest.mark.parametrize(("given", "kept"), [
    (b"line-7.part_0042", True), (b"a" * 64, True), (b"a" * 65, False), (b"", False),
    (b"a b", False), (b"a\r\nset-cookie: x", False), (b"<script>", False), (b"\xff", False)])
def test_a_request_id_is_kept_where_it_is_harmless(client: TestClient, given: bytes, kept: bool
                                                   ) -> None:
    reply = asked(client, "/nothing", headers=[HOST, (b"x-request-id", given)])
    found = reply.header("x-request-id")
    assert reply.code == "not_found" and found is not None
    assert (found == given.decode("latin-1")) is kept
    assert kept or (len(found) == 32 and found != asked(client, "/healthz").header("x-request-id"))


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/healthz"), ("GET", "/v1/categories"), ("POST", URL), ("GET", "/nothing"),
    ("GET", "/openapi.json")])
def test_every_reply_keeps_browsers_from_guessing(client: TestClient, method: str, path: str
                                                  ) -> None:
    reply = asked(client, path, method=method)
    assert [reply.header(name) for name in (
        "x-content-type-options", "referrer-policy", "x-frame-options",
        "cross-origin-resource-policy", "cache-control")] == [
            "nosniff", "no-referrer", "DENY", "same-origin", "no-store"]
    assert reply.header("server") is None


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW",
                                    "post", ""])
def test_another_method_is_405_with_those_there_are(client: TestClient, method: str) -> None:
    reply = asked(client, URL, unread(), method=method)
    assert (reply.status, reply.code, reply.header("allow")) == (405, "method_not_allowed", "POST")


PATHS = ["/v1/categories/../../etc/passwd/score", "/v1/categories/..\\..\\x/score", "//etc/passwd",
         "/v1/categories/\x00/score", "/v1/categories/weave\x00/score", "/v1/categories/ /score",
         "/v1/categories/" + "a" * 10_000 + "/score", "/" + "a" * 10_000, "*", "", "healthz",
         "/v1/categories//score", "/v1/categories/\udcff/score", "/v1/categories/weave/score/",
         "/v1/categories/\u202eevaew/score", "/v1/../v1/categories", "/V1/categories"]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_that_is_none_of_ours_is_404(client: TestClient, picture: bytes, path: str) -> None:
    reply = asked(client, path, body_of([picture]))
    assert reply.status == 404 and reply.code in {"not_found", "unknown_category"}


def test_a_websocket_is_turned_away(client: TestClient) -> None:
    async def connect() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/v1/categories", "raw_path": b"/v1/categories",
                 "root_path": "", "query_string": b"", "headers": [HOST], "subprotocols": []}
        await client.app(scope, receive, send)
        return sent

    assert [message["type"] for message in in_loop(client, connect)] == ["websocket.close"]


NAMES = st.sampled_from([b"host", b"origin", b"authorization", b"content-length", b"content-type",
                         b"x-request-id", b"accept", b"transfer-encoding", b"accept-encoding"])


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers=st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=6),
       body=st.lists(st.binary(max_size=60), max_size=4),
       path=st.one_of(st.sampled_from([URL, BATCH, "/v1/categories"]), st.text(max_size=40)),
       method=st.sampled_from(["GET", "POST", "HEAD"]))
def test_no_request_whatever_is_in_it_is_a_fault_of_the_program(
        client: TestClient, headers: Any, body: list[bytes], path: str, method: str) -> None:
    reply = asked(client, path, body_of(body), method=method, headers=[HOST, *headers])
    assert 200 <= reply.status < 500
    assert reply.status == 200 or reply.code
