"""What every case needs: a server behind the fault proxy, images, models, a cluster, a command."""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from faults import Proxy, no_fault
from ray.cluster_utils import Cluster

from chaos.accounting import Expected, Said, count, said_of, watched
from chaos.commands import RUN_TIMEOUT_S, Attempt, Order, check, igd_ray
from chaos.dump import Dump, Key, upload
from chaos.found import Found
from chaos.places import Place

SHARD_MEMBERS = 16
NODE_CPUS = 2
FIRST_DAY = date(2026, 1, 1)


@dataclass(kw_only=True)
class Night:
    """The world of all cases.

    Attributes:
        place: the bucket, past the proxy.
        first, second: other images in each.
        truth: what undisturbed runs say of their inputs.
        only: a pattern of the names of cases; others are left out where a kind has a list of them.
        run_s: what the latest undisturbed run took.
    """

    work: Path
    place: Place
    proxy: Proxy
    dice: random.Random
    models: str
    only: str = ""
    cluster: Cluster = None
    nodes: list[Any] = field(default_factory=list)
    first: Dump = field(default_factory=Dump)
    second: Dump = field(default_factory=Dump)
    truth: dict[Key, Said] = field(default_factory=dict)
    run_s: float = 0.0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def order(self, name: str, dump: Dump | None = None, **settings: Any) -> Order:
        """A command for a date and an output that nothing was published in."""
        return Order(place=self.place.below(f"out/{name}-{next(self._numbers)}"),
                     date=self.day(), dump=dump or self.first, **settings)

    def wants(self, case: str) -> bool:
        return re.search(self.only, case) is not None

    def day(self) -> str:
        """A date that no other order has."""
        return (FIRST_DAY + timedelta(days=next(self._numbers))).isoformat()

    def give(self, order: Order) -> Attempt:
        """Starts a command; all that it needs is there."""
        cluster = () if order.alone else ("--ray-address", self.cluster.address)
        done = order.place.shards_done()
        attempt = Attempt(
            [*order.prefix, *igd_ray(
                "score", *order.dump.sources, "--models", self.models, "--out", order.place.uri,
                "--date", order.date, "--category-from", "{category}/*", "--heatmaps", "all",
                "--shard-members", str(SHARD_MEMBERS), "--max-reject-share", "0.1",
                *cluster, *order.options)],
            self.work / f"{next(self._numbers)}.log", {**os.environ, **order.env})
        attempt.done, attempt.first_request = done, len(self.proxy.log)
        return attempt

    def end(self, attempt: Attempt, found: Found, timeout_s: float = RUN_TIMEOUT_S) -> int:
        """Waits for the end of an attempt, and kills it where that does not come; notes both."""
        code = attempt.wait(timeout_s)
        found.exit_codes.append(code)
        found.redone += sum(request.method == "PUT" and _shard_of(request.key) in attempt.done
                            for request in self.proxy.log[attempt.first_request:])
        return code

    def wait_for_shards(self, attempt: Attempt) -> None:
        """Until the first shard's file is being written, or the run has ended."""
        while attempt.running and not any("/shards/" in request.key for request in
                                          self.proxy.log[attempt.first_request:]):
            time.sleep(0.05)

    def kill_with_shards(self, order: Order, found: Found, shards: int) -> None:
        """Gives the command, and kills it once so many shards are finished."""
        attempt = self.give(order)
        while attempt.running and len(order.place.shards_done()) < shards:
            time.sleep(0.1)
        attempt.kill()
        self.end(attempt, found)
        found.kills += 1

    def finish(self, order: Order, found: Found) -> None:
        """Gives the command once more, which is to complete."""
        attempt = self.give(order)
        code = self.end(attempt, found)
        found.expect(code == 0, f"exit code {code} where 0 was expected: {attempt.said}")

    def expected(self, dump: Dump, **settings: Any) -> Expected:
        if not dump.members.keys() <= self.truth.keys():
            self._learn(dump)
        return Expected(rows={key: self.truth[key] for key in dump.members}, **settings)

    @contextmanager
    def case(self, kind: str, name: str, order: Order, expected: Expected | None = None
             ) -> Iterator[Found]:
        """Watches and times a case; afterwards nothing is wrong any more, and all is counted."""
        found = Found(kind=kind, case=name)
        since, began = order.place.version("scores"), time.monotonic()
        expected = expected or self.expected(order.dump)
        watch = self.work / f"{next(self._numbers)}.seen"
        try:
            with watched(order.place, order.date, watch) as seen:
                try:
                    yield found
                finally:
                    self.proxy.rule = no_fault
            found.metrics = count(order.place, order.date, expected, since, seen)
        except Exception as error:  # the border: a case that cannot be judged is not well
            found.problems.append(f"the case itself failed: {error!r}")
        found.seconds = round(time.monotonic() - began, 1)

    def start_cluster(self) -> None:
        """A head that runs nothing, and two nodes; its workers reach storage by the proxy."""
        self.cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 0, "include_dashboard": False, "object_store_memory": 1 << 28})
        self.nodes = [self.new_node() for _ in range(2)]

    def stop_cluster(self) -> None:
        self.cluster.shutdown()

    def new_node(self) -> Any:
        return self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=1 << 28)

    def prepare(self, images: int) -> None:
        """Images, models, and what an undisturbed run says of the first images."""
        env, log = {**os.environ}, self.work / "prepare.log"
        for number, name in enumerate(("first", "second")):
            products = self.work / name
            check(Attempt(igd_ray(
                "synth", str(products), "--categories", "weave,washer", "--size", "64",
                "--train", "24", "--test", str(images // 2), "--defective", "5",
                "--seed", str(number)), log, env))
            setattr(self, name, upload(self.place.below(name), products, self.dice, images))
        check(Attempt(igd_ray(
            "train-all", str(self.work / "first"), "--models", self.models, "--preset", "fast",
            "--set", "image.size=64", "--set", "calibration.folds=4",
            "--ray-address", self.cluster.address), log, env))
        self._learn(self.first)

    def _learn(self, dump: Dump) -> None:
        order = self.order("undisturbed", dump)
        attempt = self.give(order)
        check(attempt)
        self.run_s = attempt.seconds
        rows = said_of(order.place, order.date)
        scored = {key: said["status"] == "scored" for key, said in rows}
        if len(rows) != len(dump.members) or scored != dump.members:
            raise RuntimeError("the undisturbed run does not have each input once, scored or "
                               "rejected as it should be")
        self.truth |= dict(rows)


def _shard_of(key: str) -> str | None:
    """Run and number, of the key of a shard's file."""
    found = re.search(r"/runs/([^/]+)/shards/([0-9]+)-[^/]+\.parquet$", key)
    return f"{found[1]}/{found[2]}" if found else None
