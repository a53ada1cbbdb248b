"""Kinds `driver`, `worker`, `stopped`, `node` and `head`: what dies at random moments."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence

import psutil

from chaos.dump import Key
from chaos.found import Found
from chaos.night import Night

MOST_KILLS = 20
"""Of one run's driver; then it is left alone."""
ALONE_S = 8
"""What it takes to start a cluster."""
SCORERS = ("MapWorker",)
AT_WORK = ("Map", "Read")
"""In the titles of Ray's workers that read, score or write shards."""
HEAD_LOST_S = 60
STALL_MINUTES = "1"
"""So long that a busy machine starts its scorers within."""
STALLED_S = 180


def driver(night: Night, kills: int, alone: int) -> Iterator[Found]:
    """The driver dies again and again, at U(0, T), under one command until that completes.

    A new date is published, then replaced by other images, then again by the first ones.

    Args:
        kills: in all; another run is begun as long as there were fewer.
        alone: of the first so many runs, igd-ray starts the cluster.
    """
    killed, number = 0, 0
    before = frozenset[Key]()
    while killed < kills:
        turn, number = number % 3, number + 1
        if turn == 0:
            order, before = night.order("driver"), frozenset()
        order = dataclasses.replace(order, dump=(night.first, night.second, night.first)[turn],
                                    alone=number <= alone)
        name = ("new", "replaced", "replaced again")[turn]
        with night.case("driver", f"{name} {number}{' alone' * order.alone}", order,
                        night.expected(order.dump, before=before)) as found:
            while found.kills < min(MOST_KILLS, kills - killed):
                wait_s = night.dice.uniform(0, night.run_s + ALONE_S * order.alone)
                code = night.end(night.give(order), found, wait_s)
                if code == 0:
                    break
                found.expect(code == -signal.SIGKILL, f"exit code {code} before the kill")
                found.kills += 1
            else:
                night.finish(order, found)
        killed += found.kills
        before = frozenset(order.dump.members)
        yield found


def worker(night: Night, rounds: int, kills: int) -> Iterator[Found]:
    """Processes that read, score or write are killed one after the other; the run goes on."""
    for number in range(rounds):
        order = night.order("worker")
        with night.case("worker", f"{kills} killed {number}", order) as found:
            attempt = night.give(order)
            while found.kills < kills and attempt.running:
                found.kills += _kill_a_worker(night)
                time.sleep(night.dice.uniform(0, 1))
            code = night.end(attempt, found)
            found.expect(code == 0, f"exit code {code}: {attempt.said}")
            found.expect(found.kills == kills, f"{found.kills} were killed")
        yield found


def stopped(night: Night) -> Iterator[Found]:
    """The scorers stand still for ever: the run gives up, and the next one finishes."""
    order = night.order("stopped")
    hasty = dataclasses.replace(order, options=("--stall-timeout", STALL_MINUTES))
    with night.case("stopped", "all scorers", order) as found:
        attempt = night.give(hasty)
        night.wait_for_shards(attempt)
        victims = _workers(SCORERS)
        for victim in victims:
            victim.suspend()
        try:
            code = night.end(attempt, found, STALLED_S)
        finally:
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
        found.expect(bool(victims), "nothing was stopped")
        found.expect(code == 5, f"exit code {code}: {attempt.said}")
        night.finish(order, found)
    yield found


def node(night: Night, rounds: int) -> Iterator[Found]:
    """A node goes, with all that runs on it; another comes."""
    for number in range(rounds):
        order = night.order("node")
        with night.case("node", f"removed {number}", order) as found:
            attempt = night.give(order)
            night.wait_for_shards(attempt)
            gone = night.nodes.pop(night.dice.randrange(len(night.nodes)))
            night.cluster.remove_node(gone, allow_graceful=False)
            night.nodes.append(night.new_node())
            found.kills = 1
            code = night.end(attempt, found)
            found.expect(code == 0, f"exit code {code}: {attempt.said}")
        yield found


def head(night: Night, rounds: int) -> Iterator[Found]:
    """The cluster's head dies: the run ends by itself, and goes on upon another cluster."""
    for number in range(rounds):
        order = night.order("head")
        with night.case("head", f"killed {number}", order) as found:
            attempt = night.give(order)
            night.wait_for_shards(attempt)
            found.kills = _kill_gcs()
            began = time.monotonic()
            code = night.end(attempt, found, 3 * HEAD_LOST_S)
            took = found.notes["ended_after_s"] = round(time.monotonic() - began, 1)
            found.expect(code not in (0, -signal.SIGKILL) and took <= HEAD_LOST_S,
                         f"exit code {code} after {took} s: {attempt.said}")
            night.stop_cluster()
            night.start_cluster()
            night.finish(order, found)
        yield found


def _kill_a_worker(night: Night) -> int:
    at_work = _workers(AT_WORK)
    if not at_work:
        return 0
    with contextlib.suppress(psutil.NoSuchProcess):
        night.dice.choice(at_work).kill()
        return 1
    return 0


def _workers(names: Sequence[str]) -> list[psutil.Process]:
    """Ray workers below this process in the tree, so ours, whose title has one of the names."""
    found = []
    for process in psutil.Process().children(recursive=True):
        title = "".join(_command_line(process)[:1])
        if title.startswith("ray::") and any(name in title for name in names):
            found.append(process)
    return found


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _kill_gcs() -> int:
    """SIGKILL to the head's control service, below this process in the tree."""
    servers = [process for process in psutil.Process().children(recursive=True)
               if process.name() == "gcs_server"]
    for server in servers:
        os.kill(server.pid, signal.SIGKILL)
    return len(servers)
