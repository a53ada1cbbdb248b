"""Kind `stale`: files that are gone, what killed runs leave behind, time zones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from chaos.commands import Attempt, Order, check, igd_ray
from chaos.found import Found
from chaos.night import Night
from chaos.places import Place

DAY_S = 24 * 3600
KILLS = 3
ZONES = ("Pacific/Kiritimati", "Etc/GMT+12")
"""Where it is another day than here for most of the time."""


def stale(night: Night) -> Iterator[Found]:
    yield _shard_gone(night)
    yield _published_gone(night)
    yield _garbage(night)
    for zone in ZONES:
        order = night.order("stale", env={"TZ": zone}, alone=True)
        with night.case("stale", f"TZ={zone}", order) as found:
            night.finish(order, found)
            _expect_date(order, found)
        yield found


def _shard_gone(night: Night) -> Found:
    """The record of a shard is there, its file is not: it is scored again."""
    order = night.order("stale")
    with night.case("stale", "the file of a finished shard deleted", order) as found:
        night.kill_with_shards(order, found, 3)
        done = sorted(order.place.shards_done())
        files = [name for name in order.place.names("runs")
                 if "/shards/" in name and _number(name) == _number(done[0])]
        for name in files:
            order.place.delete(name)
        found.expect(bool(files), "no file of a finished shard was found")
        night.finish(order, found)
    return found


def _published_gone(night: Night) -> Found:
    """A published file is deleted: `verify` names it. The date is then published anew."""
    order = night.order("stale")
    with night.case("stale", "a published file deleted, under another date", order) as found:
        hurt = dataclasses.replace(order, date=night.day())
        check(night.give(hurt))
        gone = sorted(order.place.live("scores", date=hurt.date))[0]
        order.place.delete(gone)
        verified = Attempt(igd_ray("verify", "--out", hurt.place.uri, "--date", hurt.date),
                           night.work / "verify.log", os.environ)
        code = verified.wait()
        found.exit_codes.append(code)
        found.expect(code == 3 and gone.rsplit("/", 1)[-1] in verified.said,
                     f"verify: exit code {code}: {verified.said}")
        night.finish(order, found)
    return found


def _garbage(night: Night) -> Found:
    """A day later `gc` removes what killed runs left, and nothing that is needed."""
    order = _on_disk(night, night.work / "garbage")
    with night.case("stale", "what killed runs left, a day later", order) as found:
        for shards in range(1, KILLS + 1):
            night.kill_with_shards(order, found, shards)
        found.expect(order.place.version("scores") < 0, "published before it was killed")
        _age(Path(order.place.uri))
        _collect(night, order, found)
        left = [name for name in order.place.names("runs") if "/collected/" not in name]
        found.expect(not left, f"left of a dead run: {left[:5]}")
        night.finish(order, found)
        _age(Path(order.place.uri))
        _collect(night, order, found)
        left = [name for table in ("scores", "heatmaps", "sources") for name in
                set(order.place.names(table)) - order.place.live(table)
                if "/_delta_log/" not in name]
        found.notes["leftovers"] = len(left)
        found.expect(not left, f"files of no commit: {left[:5]}")
    return found


def _on_disk(night: Night, folder: Path) -> Order:
    return dataclasses.replace(night.order("stale"), place=Place(
        uri=str(folder), settings=night.place.settings))


def _age(folder: Path) -> None:
    """Makes everything below a folder two days older."""
    for path in folder.rglob("*"):
        then = path.stat().st_mtime - 2 * DAY_S
        os.utime(path, (then, then))


def _collect(night: Night, order: Order, found: Found) -> None:
    attempt = Attempt(igd_ray("gc", "--out", order.place.uri, "--older-than", "24h"),
                      night.work / "gc.log", os.environ)
    found.expect(attempt.wait() == 0, f"gc: exit code {attempt.wait()}: {attempt.said}")


def _expect_date(order: Order, found: Found) -> None:
    dates = {name.split("/")[1] for name in order.place.live("scores")}
    found.expect(dates == {f"date={order.date}"}, f"dates in the table: {sorted(dates)}")


def _number(name: str) -> str:
    return name.rsplit("/", 1)[-1].split("-")[0]
