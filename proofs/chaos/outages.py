"""Kind `storage`: what a network and a busy server do to requests, none of which may show."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

from faults import Fault, Request, Rule, no_fault

from chaos.found import Found
from chaos.night import Night

DOWN_S = 20
UNREACHABLE_S = 120
GIVEN_UP_S = 240
When = Callable[[Request], bool]


def storage(night: Night) -> Iterator[Found]:
    """Requests fail in one way each, and the run completes all the same."""
    for name, rule in _rules(night.dice).items():
        if night.wants(name):
            yield _struck(night, name, rule)
    for name, case in (("a part of an upload fails", _multipart),
                       ("down at the start", _down_at_start),
                       (f"down for {DOWN_S} s", _down_for_a_while),
                       ("down for good", _down_for_good)):
        if night.wants(name):
            yield case(night, name)


def at_first(times: int, when: When, fault: Fault) -> Rule:
    """The fault for the first requests of each key."""
    asked = Counter[str]()

    def rule(request: Request) -> Fault | None:
        if not when(request):
            return None
        asked[request.key] += 1
        return fault if asked[request.key] <= times else None

    return rule


def now_and_then(share: float, dice: random.Random, when: When, fault: Fault) -> Rule:
    return lambda request: fault if when(request) and dice.random() < share else None


def of_inputs(request: Request) -> bool:
    """A read of the images, archives and files that are to be scored."""
    return request.method == "GET" and request.key.split("/", 1)[0] in ("first", "second") and (
        "list-type" not in request.query)


def of_commits(request: Request) -> bool:
    return request.method == "PUT" and "/_delta_log/" in request.key


def _rules(dice: random.Random) -> dict[str, Rule]:
    anything, puts = (lambda request: True), (lambda request: request.method == "PUT")
    return {
        "503 SlowDown for 20% of requests": now_and_then(
            0.2, dice, anything, Fault(status="503 SlowDown")),
        "500 for 10% of requests": now_and_then(
            0.1, dice, anything, Fault(status="500 InternalError")),
        "connection reset in the middle of bodies": at_first(
            2, of_inputs, Fault(reset_at=0.5)),
        "short bodies": at_first(1, of_inputs, Fault(short_at=0.5)),
        "replies of 30% of PUTs lost": now_and_then(0.3, dice, puts, Fault(lose_reply=True)),
        "the reply of every commit lost": at_first(1, of_commits, Fault(lose_reply=True)),
        "bodies of 1 B/s": at_first(
            1, lambda request: of_inputs(request) and request.key.endswith((".tar", ".zip")),
            Fault(bytes_per_s=1)),
    }


def _struck(night: Night, name: str, rule: Rule) -> Found:
    order = night.order("storage")
    with night.case("storage", name, order) as found:
        struck = Counter[str]()
        night.proxy.rule = _counted(rule, struck)
        night.finish(order, found)
        night.proxy.rule = no_fault
        if found.problems:  # it should not have given up; is anything lost by that?
            night.finish(order, found)
        found.notes["struck"] = dict(struck)
        found.expect(bool(struck), "no request was struck")
    return found


def _counted(rule: Rule, struck: Counter[str]) -> Rule:
    def counting(request: Request) -> Fault | None:
        fault = rule(request)
        if fault is not None:
            struck[request.method] += 1
        return fault

    return counting


def _multipart(night: Night, name: str) -> Found:
    parts = [request for request in night.proxy.log
             if "uploadId" in request.query and request.key.startswith("out/")]
    found = Found(kind="storage", case=name)
    if parts:
        found.problems.append("multipart uploads are used now, and no case lets them fail")
    else:
        found.skipped = "no request of any case was part of a multipart upload"
    return found


def _down_at_start(night: Night, name: str) -> Found:
    order = night.order("storage")
    with night.case("storage", name, order) as found:
        night.proxy.down()
        try:
            attempt = night.give(order)
            code = night.end(attempt, found)
        finally:
            night.proxy.up()
        took = found.notes["ended_after_s"] = round(attempt.seconds, 1)
        found.expect(code == 5 and took <= UNREACHABLE_S,
                     f"exit code {code} after {took} s: {attempt.said}")
        found.expect(night.proxy.endpoint in attempt.said, f"endpoint not named: {attempt.said}")
        night.finish(order, found)
    return found


def _down_for_a_while(night: Night, name: str) -> Found:
    order = night.order("storage")
    with night.case("storage", name, order) as found:
        attempt = night.give(order)
        night.wait_for_shards(attempt)
        night.proxy.down()
        time.sleep(DOWN_S)
        night.proxy.up()
        code = night.end(attempt, found)
        found.expect(code == 0, f"exit code {code}: {attempt.said}")
    return found


def _down_for_good(night: Night, name: str) -> Found:
    order = night.order("storage")
    with night.case("storage", name, order) as found:
        attempt = night.give(order)
        night.wait_for_shards(attempt)
        began = time.monotonic()
        night.proxy.down()
        try:
            code = night.end(attempt, found, GIVEN_UP_S)
        finally:
            night.proxy.up()
        found.notes["ended_after_s"] = round(time.monotonic() - began, 1)
        found.expect(code == 5, f"exit code {code}: {attempt.said}")
        night.finish(order, found)
    return found
