"""Breaks everything around `igd-ray score`, and counts whether an image was lost or doubled.

    PYTHONPATH=tests python proofs/score_chaos.py [--kinds driver,step,...] [--kills 200]

Some hundred small images lie in a tar, a zip and a folder on an S3 server behind a fault proxy; a
cluster of two nodes on this machine scores them. Each case disturbs that in one way until the same
command has completed; then a checker that knows only the list of inputs counts

    lost      inputs without a row               dup    rows beyond one of an input
    ghost     rows of nothing that was put in    torn   files in sight that cannot be read
    early     rows in sight before all are, to a polling reader and in every version of the table
    drift     rows that say something else than those of an undisturbed run, heatmaps included
    regress   rows published before that were missing while the new ones were not whole

and the finished shards that were scored again. Exits with 1 where anything but those is not 0;
results are written to proofs/results/score_chaos.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos import damage, disks, kills, outages, races, signals, stale, steps
from chaos.accounting import METRICS
from chaos.found import Found
from chaos.night import Night
from chaos.places import Place
from faults import Proxy
from s3_server import BUCKET, s3_server

from igd.cli.output import commit

RESULT = Path(__file__).parent / "results" / "score_chaos.json"
Options = argparse.Namespace
KINDS: dict[str, Callable[[Night, Options], Iterator[Found]]] = {
    "driver": lambda night, asked: kills.driver(night, asked.kills, asked.rounds),
    "step": lambda night, asked: steps.step(night, asked.steps),
    "worker": lambda night, asked: kills.worker(night, asked.rounds, asked.workers),
    "stopped": lambda night, asked: kills.stopped(night),
    "node": lambda night, asked: kills.node(night, asked.rounds),
    "head": lambda night, asked: kills.head(night, asked.rounds),
    "signal": lambda night, asked: signals.told(night, asked.rounds),
    "storage": lambda night, asked: outages.storage(night),
    "input": lambda night, asked: damage.inputs(night),
    "schedulers": lambda night, asked: races.schedulers(night, asked.rounds),
    "stale": lambda night, asked: stale.stale(night),
    "disk": lambda night, asked: disks.disk(night),
}


def main() -> None:
    asked, tree = _options(), commit()  # before the results themselves change it
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    # in the background of a shell it is ignored, and so would the runs do that are sent one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # told to stop, it stops its servers and its cluster
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cases: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="igd") as work, world(Path(work), asked) as night:
        print(f"undisturbed: {night.run_s:.0f} s", flush=True)
        for kind in asked.kinds.split(","):
            for found in KINDS[kind](night, asked):
                cases.append(found)
                print(_line(found), flush=True)
                document = _document(tree, cases, asked)  # known, should the rest be cut off
                asked.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["totals"]))
    sys.exit(0 if all(found.ok for found in cases) else 1)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cases", default="", metavar="PATTERN",
                        help="of the names of cases: leaves out others of step, storage and input")
    parser.add_argument("--rounds", type=int, default=3, help="of what is drawn by chance")
    parser.add_argument("--kills", type=int, default=200, help="of the driver, at random moments")
    parser.add_argument("--steps", type=int, help="of each scene, by chance; default: all")
    parser.add_argument("--workers", type=int, default=5, help="that are killed under one run")
    parser.add_argument("--images", type=int, default=240, help="in each dump")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    if unknown := set(asked.kinds.split(",")) - set(KINDS):
        parser.error(f"--kinds {', '.join(unknown)}: expected some of {', '.join(KINDS)}")
    return asked


@contextmanager
def world(work: Path, asked: Options) -> Iterator[Night]:
    """A server behind the proxy, a cluster that reaches it through that, images and models."""
    with s3_server() as settings:
        host, _, port = settings["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
        with Proxy(host, int(port)) as proxy:
            os.environ.update(settings, AWS_ENDPOINT_URL=proxy.endpoint, OMP_NUM_THREADS="1")
            place = Place(uri=f"s3://{BUCKET}", settings=settings)
            night = Night(work=work, place=place, proxy=proxy, dice=random.Random(asked.seed),
                          models=f"{place.uri}/models", only=asked.cases)
            night.start_cluster()
            try:
                night.prepare(asked.images)
                yield night
            finally:
                night.stop_cluster()


def _line(found: Found) -> str:
    wrong = {name: value for name, value in found.metrics.items() if value}
    state = f"skipped: {found.skipped}" if found.skipped else "ok" if found.ok else "WRONG"
    return (f"{found.kind}, {found.case}: {state}, {found.seconds:.0f} s, codes "
            f"{found.exit_codes}, {found.redone} done again"
            f"{f', {wrong}' if wrong else ''}"
            f"{''.join(f', {name} {value}' for name, value in found.notes.items())}"
            f"{''.join(f'{chr(10)}  {problem}' for problem in found.problems)}")


def _document(tree: str | None, cases: list[Found], asked: Options) -> dict[str, Any]:
    counted = [found for found in cases if found.skipped is None]
    return {
        "commit": tree, "seed": asked.seed, "images": asked.images,
        "kinds": {kind: sum(found.kind == kind for found in counted) for kind in KINDS},
        "kills": sum(found.kills for found in counted),
        "totals": {**{name: sum(found.metrics.get(name, 0) for found in counted)
                      for name in METRICS},
                   "redone": sum(found.redone for found in counted),
                   "problems": sum(len(found.problems) for found in counted)},
        "cases": [dataclasses.asdict(found) for found in cases],
    }


if __name__ == "__main__":
    main()
