"""What gets through to Ray Serve's proxy, and back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from igd.serve import door
from igd.serve.config import EndpointConfig
from igd.serve.guard import PLACES

SCORE = "/v1/categories/weave/score"
Headers = list[tuple[bytes, bytes]]


def scope_of(path: str = SCORE, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers)}


def through(path: str = "/", *headers: tuple[bytes, bytes], kind: str = "http", status: int = 200,
            reply: Headers | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The scopes that the proxy sees of a request, and what is sent back."""
    seen: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": status, "headers": reply or []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of(path, *headers) | {"type": kind}
    asyncio.run(door.Door(proxy)(scope, None, send))  # type: ignore[arg-type]
    return seen, sent


def test_serve_finds_it_by_its_name(monkeypatch) -> None:
    monkeypatch.setattr(door, "log_to_stderr", lambda: None)  # for a process of its own
    found = call_function_from_import_path(door.CALLBACK)
    assert [one.cls for one in validate_http_proxy_callback_return(found)] == [door.Door]


@pytest.mark.parametrize("name", [
    b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id", b"x-session-id", b"x_session_id"])
def test_no_client_steers_serve(name: bytes) -> None:
    seen, _ = through("/", (name, b"\xff"), (b"accept", b"\xff"))
    assert seen[0]["headers"][:-1] == [(b"accept", b"\xff")]


@pytest.mark.parametrize(("given", "kept"), [(b"line-7", True), (b"\xff", False), (b"", False),
                                             (b"a b", False), (b"a" * 65, False)])
def test_serve_and_client_are_told_one_request_id(given: bytes, kept: bool) -> None:
    seen, _ = through("/", (b"x-request-id", given))
    (name, told), = seen[0]["headers"]
    assert name == b"x-request-id" and (told == given) is kept and (kept or len(told) == 32)
    _, (start, body) = through(SCORE, (b"x-request-id", given), status=500)
    assert (json.loads(body["body"])["request_id"] == given.decode("latin-1")) is kept
    assert (b"x-request-id", json.loads(body["body"])["request_id"].encode()) in start["headers"]


@pytest.mark.parametrize("path", [
    f"{SCORE}\n", "/\x00", "/-/routes", "/-/", "/-/healthz/", "/-/healthz/../routes", "*", "",
    "healthz", "http://x/"])
def test_what_serve_tells_of_itself_is_not_there(path: str) -> None:
    seen, sent = through(path)
    assert seen == [] and sent[0]["status"] == 404
    assert set(json.loads(sent[1]["body"])) == {"error", "code", "request_id"}


@pytest.mark.parametrize(("path", "limit"), [
    ("/v1/categories/weave/score", EndpointConfig.max_body_bytes),
    ("/", EndpointConfig.max_body_bytes),
    ("/v1/categories/weave/score-batch", EndpointConfig.max_batch_bytes)])
def test_of_a_body_only_what_may_be_asked_for_is_taken_in(path: str, limit: int) -> None:
    taken = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        while True:  # as Serve's does
            taken.append(len((await receive())["body"]))

    async def run() -> None:
        scope = scope_of(path)
        async with asyncio.timeout(1):
            await door.Door(proxy)(scope, receive, None)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert sum(taken) == limit + 2**20


def big(chunks: int) -> Any:
    """A body of so many MiB, as it comes in."""
    left = iter(range(chunks, 0, -1))

    async def receive() -> dict[str, Any]:
        for still in left:
            return {"type": "http.request", "body": bytes(2**20), "more_body": still > 1}
        raise AssertionError("nobody asks for what is not there")

    return receive


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    """An endpoint that has seen enough."""
    await receive()
    await send({"type": "http.response.start", "status": 413,
                "headers": [(PLACES, b"1 2"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize("chunks", [1, 50])
def test_a_client_that_still_sends_reads_why_it_is_refused(chunks: int) -> None:
    receive, sent = big(chunks), []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(door.Door(refuses)(scope_of(), receive, send))
    assert [message.get("status") for message in sent[:2]] == [413, None]
    assert b"".join(message.get("body", b"") for message in sent) == b"no"
    assert [message["more_body"] for message in sent if message.get("more_body")] == (
        [True] if chunks > 1 else [])
    with pytest.raises(AssertionError):
        asyncio.run(receive())  # all of it was taken in


def test_of_a_body_that_is_refused_nothing_more_is_held() -> None:
    kept: list[Any] = []
    body = big(50)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return await body()

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        async def keep() -> None:  # as Serve's does, beside the reply
            while True:
                kept.append(await receive())

        task = asyncio.create_task(keep())
        await refuses(scope, receive, send)
        task.cancel()

    asyncio.run(door.Door(proxy)(scope_of(), receive, send))
    assert len(kept) < 5


def test_a_reply_that_has_begun_is_not_begun_again() -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(PLACES, b"1 2")]})
        assert (await receive())["type"] == "http.disconnect"  # beyond the budget
        await send({"type": "http.response.body", "body": b"whole"})

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        one = door.Door(proxy)
        one.bodies.most = 1
        await one(scope_of(), big(2), send)
        return sent

    start, body = asyncio.run(run())
    assert (start["status"], body["body"]) == (200, b"whole")


def test_a_token_that_is_taken_back_is_no_longer_known() -> None:
    one, caller = door.Door(refuses), door._caller([(b"authorization", b"Bearer x")])
    one.met(caller, 422)
    assert not one.knows(caller)  # only a score tells that it is good
    one.met(caller, 200)
    assert one.knows(caller)
    one.met(caller, 401)
    assert not one.knows(caller)


def test_a_client_that_never_ends_is_not_listened_to_for_ever(monkeypatch) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        ended.append(message)

    ended: list[Any] = []
    monkeypatch.setattr(door, "LINGER_S", 0.1)
    asyncio.run(door.Door(refuses)(scope_of(), receive, send))
    assert not ended[-1].get("more_body")


def test_bodies_beyond_the_budget_are_refused_and_all_is_given_back() -> None:
    told: list[str] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect" and message["more_body"]:
            pass
        told.append(message["type"])

    async def run() -> None:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        one = door.Door(proxy)
        one.bodies.most = 8 * 2**20
        scope = scope_of()
        await one(scope, big(9), send)
        assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["code"] == "overloaded"
        await one(scope, big(8), send)
        assert told == ["http.disconnect", "http.request"] and one.bodies.held == 0

    asyncio.run(run())


def test_kuberay_is_told_that_the_proxy_is_well() -> None:
    assert through("/-/healthz")[0] and through("/v1/-/x")[0]


class Busy:
    """A proxy whose requests stay until they are told to end, with a door ahead of it."""

    def __init__(self, places: int) -> None:
        self.end, self.asked = asyncio.Event(), 0
        self.door = door.Door(self._proxy)
        self._places = places

    async def ask(self, path: str = SCORE, more_body: bool = False, token: bytes = b"",
                  method: str = "POST") -> list[dict[str, Any]]:
        """What is sent back; of a body that never ends, nothing."""
        sent: list[dict[str, Any]] = []
        bodies = iter([{"type": "http.request", "body": b"x", "more_body": more_body}])

        async def receive() -> Any:
            for body in bodies:
                return body
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = scope_of(path, (b"authorization", token)) | {"method": method}
        await self.door(scope, receive, send)
        return sent

    async def _proxy(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        await self.end.wait()
        known = (b"authorization", b"stranger") not in scope["headers"]
        await send({"type": "http.response.start", "status": 200 if known else 401,
                    "headers": [(PLACES, f"1 {self._places}".encode()), (b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def after(*coroutines: Any) -> list[asyncio.Task[Any]]:
    """Tasks that have gone as far as they go by themselves."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("path", [SCORE, f"{SCORE}-batch", "/v2/models/weave/infer",
                                  "/v2/models/weave/versions/1/infer"])
def test_images_beyond_the_places_are_refused_before_serve_hears_of_them(path: str) -> None:
    async def run() -> None:
        busy = Busy(places=2)
        busy.end.set()
        first = await busy.ask(path)
        assert first[0]["headers"] == [(b"x", b"y")]  # how many there are is not for clients
        busy.end.clear()
        refused = door.REFUSED._value.get()
        tasks = await after(busy.ask(path), busy.ask(path))
        answer, body = await busy.ask(path)
        assert busy.asked == 3 and door.REFUSED._value.get() == refused + 1
        assert answer["status"] == 503 and (b"retry-after", b"1") in answer["headers"]
        assert json.loads(body["body"])["code"] == "overloaded"
        others = await after(busy.ask("/readyz"), busy.ask("/v1/categories"))
        assert busy.asked == 5  # only images take places
        busy.end.set()
        await asyncio.gather(*tasks, *others)
        assert (await busy.ask(path))[0]["status"] == 200 and busy.door.taken == 0

    asyncio.run(run())


def test_strangers_take_no_place_and_few_are_let_in_at_a_time() -> None:
    async def run() -> None:
        busy = Busy(places=1)
        busy.end.set()
        await busy.ask()
        busy.end.clear()
        strangers = await after(*(busy.ask(token=b"stranger") for _ in range(3 * door.STRANGERS)))
        assert busy.asked == 1 + door.STRANGERS and busy.door.taken == 0
        others = await after(busy.ask(method="GET", token=b"stranger"), busy.ask())
        assert busy.asked == 3 + door.STRANGERS and busy.door.taken == 1
        busy.end.set()
        statuses = [(await task)[0]["status"] for task in (*strangers, *others)]
        assert statuses == [401] * door.STRANGERS + [503] * 2 * door.STRANGERS + [401, 200]
        assert busy.door.strangers == 0 and not busy.door.knows(door._caller(
            [(b"authorization", b"stranger")]))

    asyncio.run(run())


def test_bodies_that_come_in_late_find_no_more_places_than_there_are(monkeypatch) -> None:
    monkeypatch.setattr(door, "GRACE_S", 0.01)
    ends = asyncio.Event()

    async def late() -> dict[str, Any]:
        await ends.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def run() -> None:
        busy = Busy(places=2)
        busy.end.set()
        await busy.ask()
        busy.end.clear()
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = scope_of(SCORE, (b"authorization", b""))
        tasks = await after(*(busy.door(scope, late, send) for _ in range(2)))
        await asyncio.sleep(0.05)
        tasks += await after(*(busy.door(scope, late, send) for _ in range(2)))
        await asyncio.sleep(0.05)
        ends.set()
        await asyncio.sleep(0.05)
        assert busy.door.taken == 2
        busy.end.set()
        await asyncio.gather(*tasks)
        assert sorted(m["status"] for m in sent if "status" in m) == [200, 200, 503, 503]
        assert (busy.door.taken, busy.door.bodies.held) == (0, 0)

    asyncio.run(run())


def test_refusals_further_on_count_as_an_overload() -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": statuses.pop(),
                    "headers": [(PLACES, b"1 9")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        pass

    async def run() -> bool:
        one = door.Door(proxy)
        for _ in range(31):
            await one(scope_of(), big(1), send)
        return one.admission.admits(1, time.monotonic())

    statuses = [503] * 30 + [200]
    assert not asyncio.run(run())
    statuses = [200] * 31
    assert asyncio.run(run())


def test_the_proxy_needs_no_torch_for_it() -> None:
    code = ("import sys; sys.modules['torch'] = None; import igd.serve.door; "
            "print(*{'ray', 'obstore', 'sklearn'} & sys.modules.keys())")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_who_sends_slowly_takes_no_place() -> None:
    async def run() -> None:
        busy = Busy(places=1)
        busy.end.set()
        await busy.ask()
        slow, = await after(busy.ask(more_body=True))
        assert busy.door.taken == 1
        await asyncio.sleep(2 * door.GRACE_S)
        assert busy.door.taken == 0
        assert (await busy.ask())[0]["status"] == 200
        busy.end.clear()
        one, = await after(busy.ask())
        one.cancel()  # a client that goes away gives its place back
        await asyncio.wait([one])
        busy.end.set()
        assert (await busy.ask())[0]["status"] == 200
        slow.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("status", "told", "code"), [
    (500, 503, "unavailable"), (503, 503, "unavailable"), (404, 503, "unavailable"),
    (408, 504, "timeout"), (504, 504, "timeout")])
@pytest.mark.parametrize("path", [SCORE, "/", "/v1/categories", "/healthz"])
def test_what_serve_says_by_itself_is_told_as_an_error_to_try_again(
        path: str, status: int, told: int, code: str) -> None:
    _, (start, body) = through(path, status=status)
    assert start["status"] == told and json.loads(body["body"])["code"] == code


@pytest.mark.parametrize(("path", "status", "reply"), [
    (SCORE, 404, [(PLACES, b"1 2")]),  # the endpoint's own
    ("/other/app", 404, []), ("/-/healthz", 503, []), ("/v3", 500, [])])
def test_errors_of_the_endpoint_and_of_other_applications_pass(
        path: str, status: int, reply: Headers) -> None:
    _, sent = through(path, status=status, reply=reply)
    assert sent == [{"type": "http.response.start", "status": status, "headers": []},
                    {"type": "http.response.body", "body": b"ok"}]


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_a_request_that_serve_does_not_answer_is_told_to_try_again(fails: bool, gone: bool) -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if fails:
            raise RuntimeError

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"} if gone else {"type": "http.request", "body": b""}

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(door.Door(proxy)(scope_of(), receive, send))
    assert [message.get("status") for message in sent] == ([] if gone else [503, None])


def test_what_is_answered_here_is_counted() -> None:
    def count() -> float:
        families, = door.collect(None).values()
        return sum(sample.value for family in families for sample in family.samples
                   if sample.name == "igd_requests_total" and sample.labels["code"] == "404")

    before = count()
    through("/-/routes")
    assert count() == before + 1


def test_no_websocket_reaches_serve() -> None:
    seen, sent = through(kind="websocket")
    assert seen == [] and sent == [{"type": "websocket.close", "code": 1008}]
