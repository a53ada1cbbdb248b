"""Kind `schedulers`: two commands for one date at the same moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from chaos.found import Found
from chaos.night import Night

CLUSTERS = ("two clusters", "one cluster")
BOTH_S = 300


def schedulers(night: Night, rounds: int) -> Iterator[Found]:
    for number in range(rounds):
        for clusters in CLUSTERS:
            for name, case in (("the same command", _same), ("other images", _other)):
                if night.wants(f"{name}, {clusters}"):
                    yield case(night, f"{name}, {clusters} {number}", clusters == "two clusters")


def _same(night: Night, name: str, alone: bool) -> Found:
    """The same command twice: one of them publishes, both are content."""
    order = night.order("schedulers", alone=alone)
    with night.case("schedulers", name, order) as found:
        attempts = [night.give(order) for _ in range(2)]
        for attempt in attempts:
            code = night.end(attempt, found, BOTH_S)
            found.expect(code == 0, f"exit code {code}: {attempt.said}")
        published = order.place.publications(order.date)
        found.expect(published == 1, f"published {published} times")
    return found


def _other(night: Night, name: str, alone: bool) -> Found:
    """Two commands for the same categories: the rows of one stand, whole."""
    order = night.order("schedulers", alone=alone)
    other = dataclasses.replace(order, dump=night.second)
    expected = dataclasses.replace(night.expected(order.dump),
                                   else_rows=night.expected(other.dump).rows)
    with night.case("schedulers", name, order, expected) as found:
        attempts = [night.give(order), night.give(other)]
        for attempt in attempts:
            code = night.end(attempt, found, BOTH_S)
            found.expect(code in (0, 3), f"exit code {code}: {attempt.said}")
        found.expect(0 in found.exit_codes, "neither has published")
    return found
