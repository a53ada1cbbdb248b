"""Kind `input`: archives and files that are refused, damaged, replaced or deleted after listing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from faults import Fault, Request, Rule

from chaos.accounting import said_of
from chaos.dump import Key
from chaos.found import Found
from chaos.night import Night
from chaos.outages import When, at_first, of_inputs

ALWAYS = 1 << 30
DAMAGED = frozenset({"crc", "corrupt", "truncated", "not_image", "format_not_allowed",
                     "name_mismatch", "empty", "method", "encrypted", "overlap"})


def inputs(night: Night) -> Iterator[Found]:
    """What was hit may be rejected, for a true reason; the rest is as ever."""
    members = night.first.members
    tar, zipped = (tuple(key for key in members if key[0].endswith(suffix))
                   for suffix in (".tar", ".zip"))
    loose = tuple(key for key, good in members.items() if good and not key[1])
    for status, reason in (("403 AccessDenied", "denied"), ("404 NoSuchKey", "vanished")):
        refused = at_first(ALWAYS, _bytes_of(".tar"), Fault(status=status))
        yield from _hit(night, f"{status} on the bytes of an archive", _may(tar, reason),
                        once_planned(refused))
    yield from _hit(night, "a bit of half of all bodies turned", _may(members, *DAMAGED),
                    once_planned(_bits_turned(night.dice)))
    for name, keys in (("a file", loose[:1]), ("a tar", tar), ("a zip", zipped)):
        yield from _changed(night, name, keys)


def _changed(night: Night, name: str, keys: tuple[Key, ...]) -> Iterator[Found]:
    """Another version in its place, and nothing; afterwards it is there again."""
    here = _place_of(night, keys[0])
    there = next(other for other in map(partial(_place_of, night), night.second.members)
                 if other.endswith(here[-4:]))
    data, other = night.place.read(here), night.place.read(there)
    changes: dict[str, tuple[str, Callable[[], None]]] = {
        "replaced": ("changed", lambda: night.place.write(here, other)),
        "deleted": ("vanished", lambda: night.place.delete(here))}
    for what, (reason, change) in changes.items():
        try:
            yield from _hit(night, f"{name} {what} after listing", _may(keys, reason),
                            when_planned(change))
        finally:
            night.place.write(here, data)


def once_planned(rule: Rule) -> Rule:
    """The rule, from the moment when all is listed."""
    planned = False

    def later(request: Request) -> Fault | None:
        nonlocal planned
        planned = planned or _is_plan(request)
        return rule(request) if planned else None

    return later


def when_planned(change: Callable[[], object]) -> Rule:
    """Calls something once, when all is listed."""
    planned = False

    def once(request: Request) -> Fault | None:
        nonlocal planned
        if planned or not _is_plan(request):
            return None
        planned = True
        return Fault(after=change)

    return once


def _hit(night: Night, name: str, rejects: Mapping[Key, frozenset[str]], rule: Rule
         ) -> Iterator[Found]:
    """One run; its exit code says that something is to be looked at, where that is much."""
    if not night.wants(name):
        return
    order = night.order("input")
    allowed = {key: reasons | {night.truth[key]["reject_reason"]}
               for key, reasons in rejects.items()}
    with night.case("input", name, order, night.expected(order.dump, rejects=allowed)) as found:
        night.proxy.rule = rule
        attempt = night.give(order)
        code = night.end(attempt, found)
        reasons = Counter(said["reject_reason"] for _, said in said_of(order.place, order.date)
                          if said["status"] == "rejected")
        found.notes["rejected"] = dict(reasons)
        more = reasons.total() - sum(not good for good in order.dump.members.values())
        right = 3 if reasons.total() > 0.1 * len(order.dump.members) else 0
        found.expect(code == right, f"exit code {code}, not {right}: {attempt.said}")
        found.expect(more > 0, "nothing that was hit is rejected")
    yield found


def _is_plan(request: Request) -> bool:
    return request.method == "PUT" and request.key.endswith("/plan.json")


def _may(keys: Iterable[Key], *reasons: str) -> dict[Key, frozenset[str]]:
    return dict.fromkeys(keys, frozenset(reasons))


def _bits_turned(dice: random.Random) -> Rule:
    return lambda request: Fault(flip_at=dice.random()) if (
        of_inputs(request) and dice.random() < 0.5) else None


def _bytes_of(suffix: str) -> When:
    return lambda request: of_inputs(request) and request.key.endswith(suffix)


def _place_of(night: Night, key: Key) -> str:
    """Where an input lies in the bucket."""
    return key[0].removeprefix(f"{night.place.uri}/")
