"""Kind `step`: the driver dies at every single write, before and after it was carried out."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Collection, Iterator

from faults import Fault, Request, no_fault

from chaos.commands import Attempt, Order, check, igd_ray_offers
from chaos.dump import Dump
from chaos.found import Found
from chaos.night import Night

MOST_DATES = 10
WAYS = ("before", "after")
DRAWN = ((re.compile(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}-g(\d+)"), r"RUN-g\1"),
         (re.compile(r"date=\d{4}-\d\d-\d\d"), "date=D"),
         (re.compile(r"[0-9a-f]{12,32}(?=\.parquet$|$)"), "*"))
Step = tuple[str, str]
"""A write by its label, and the side of it on which the driver dies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What is published before, and what is asked for then."""

    name: str
    before: Dump | None
    dump: Dump
    expected: Dump
    options: tuple[str, ...] = ()
    same_date: bool = True


def step(night: Night, most: int | None) -> Iterator[Found]:
    """The same command dies at one write after the other, until it completes.

    Between the attempts nothing is put right. A write that was over before its turn came (for
    workers go on for a moment without their driver) is met on another date.

    Args:
        most: so many steps of each scene, drawn by chance; None: all of them.
    """
    for scene in filter(lambda scene: night.wants(scene.name), _scenes(night)):
        if not igd_ray_offers(scene.options):
            yield Found(kind="step", case=scene.name, skipped="this version lacks the option")
            continue
        steps = _steps_of(night, scene)
        left = set(steps if most is None else night.dice.sample(steps, most))
        for number in range(MOST_DATES):
            found = _one_date(night, scene, number, left)
            found.notes = {"steps": len(steps), "left": len(left)}
            if number == MOST_DATES - 1:
                found.expect(not left, f"never met: {sorted(left)}")
            yield found
            if not left:
                break


def label(key: str, written: Collection[str]) -> str:
    """A key below the output without what is drawn anew each time, and which time it is.

    Args:
        written: labels of what this attempt wrote before.
    """
    text = key.split("/", 2)[-1]  # deletions are requests to the bucket
    for pattern, instead in DRAWN:
        text = pattern.sub(instead, text)
    return f"{text}#{sum(known.startswith(f'{text}#') for known in written) + 1}"


def _scenes(night: Night) -> list[Scene]:
    first, second = night.first, night.second
    both = Dump(sources=first.sources + second.sources, members=first.members | second.members)
    return [Scene(name="new", before=None, dump=first, expected=first),
            Scene(name="replaced", before=first, dump=second, expected=second),
            Scene(name="new only", before=first, dump=both, expected=second,
                  options=("--new-only",), same_date=False)]


def _steps_of(night: Night, scene: Scene) -> list[Step]:
    """Both sides of every write of an undisturbed run, in order."""
    order = _ready(night, scene)
    begin = len(night.proxy.log)
    check(night.give(order))
    labels: list[str] = []
    for request in night.proxy.log[begin:]:
        if request.writes:
            labels.append(label(request.key, labels))
    return [(each, way) for each in labels for way in WAYS]


def _ready(night: Night, scene: Scene) -> Order:
    """The order for a new date, with what must have been published before."""
    order = night.order("step", scene.dump, options=scene.options)
    if scene.before is not None:
        earlier = dataclasses.replace(order, dump=scene.before, options=())
        if not scene.same_date:
            earlier = dataclasses.replace(earlier, date=night.day())
        check(night.give(earlier))
    return order


def _one_date(night: Night, scene: Scene, number: int, left: set[Step]) -> Found:
    order = _ready(night, scene)
    before = scene.before.members if scene.before and scene.same_date else ()
    with night.case("step", f"{scene.name} {number}", order,
                    night.expected(scene.expected, before=frozenset(before))) as found:
        while left and found.kills < 2 * len(left) + MOST_DATES:
            death = _Death(left)
            night.proxy.rule = death.rule
            death.attempt = attempt = night.give(order)
            code = night.end(attempt, found)
            if code == 0:
                return found
            found.kills += 1
            found.expect(code == -signal.SIGKILL and death.at is not None,
                         f"exit code {code} at {death.at}: {attempt.said}")
            left.discard(death.at or ("", ""))
        night.proxy.rule = no_fault
        night.finish(order, found)
    return found


class _Death:
    """Kills an attempt at the first write that is one of some steps.

    Attributes:
        at: the step it was.
    """

    def __init__(self, steps: Collection[Step]) -> None:
        self.at: Step | None = None
        self.attempt: Attempt | None = None
        self._steps = steps
        self._written: list[str] = []

    def rule(self, request: Request) -> Fault | None:
        if not request.writes or self.attempt is None:
            return None
        if self.at is not None:  # what is left of the attempt tries it again
            again = label(request.key, ()) == self.at[0].split("#")[0] + "#1"
            return Fault(refuse=again and self.at[1] == "before")
        self._written.append(label(request.key, self._written))
        for way in WAYS:
            if (self._written[-1], way) in self._steps:
                self.at = (self._written[-1], way)
                return Fault(before=self.attempt.kill, refuse=True) if way == "before" else (
                    Fault(after=self.attempt.kill, lose_reply=True))
        return None
