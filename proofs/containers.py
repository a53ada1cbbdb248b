"""Scores the magnetic tiles out of whatever may hold them, and compares every bit.

    PYTHONPATH=tests python proofs/containers.py DATA [--out FILE]

DATA holds `magnetic_tile/`. A `fast` model of MT_Free is trained once. Then its photographs are
scored out of a directory, a tar, a tar.gz, a zip, a WebDataset and a Parquet file, on a local disk
and on an S3 server of this machine, tables beside them, in shards of several sizes, by pools of
several sizes. What the tables say of each photograph, known by the hash of its bytes, must be what
they say after the first run, and what `Scorer.score` says, without Ray, of the file as Pillow
decodes it: score, terms, p-value, decision, regions, heatmap, fingerprint, to the last bit. At
last Polars, DuckDB, pandas and deltalake read the tables of one run on either place, and must see
the same. Exits with 1 where anything differs; results go to proofs/results/containers.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bits.packing import KINDS, Photographs, pack
from bits.readers import READERS, seen
from bits.said import COLUMNS, Row, differing, digest, in_process, in_tables
from chaos.places import Place
from ray.cluster_utils import Cluster
from s3_server import BUCKET, s3_server

from igd import registry
from igd.cli.output import commit
from igd.config import preset_config
from igd.data.routing import Routing
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.cluster import Resources, connected
from igd.pipelines.run import request
from igd.pipelines.score import score
from igd.score.scorer import pinned_threads

RESULT = Path(__file__).parent / "results" / "containers.json"
DAY = date(2026, 1, 2)
CATEGORY = "MT_Free"
PLACES = ("local", "s3")
SHARD_MEMBERS = (7, 64, 256, 1000)
CPUS = (3, 4, 6)
"""Of a cluster: pools of 1, 2 and 4 scorers."""
OBJECT_STORE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        cpus: of the cluster that scores.
    """

    container: str
    place: str
    shard_members: int
    cpus: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    # told to stop, it stops its server and its cluster
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="igd") as work, s3_server() as settings:
        os.environ.update(settings, OMP_NUM_THREADS="1")
        document: dict[str, Any] = {"commit": commit(), "machine": machine()}
        lab = Lab(asked.data.resolve() / "magnetic_tile", Path(work), settings)
        document |= {**lab.described, "runs": [], "readers": {}}
        for cpus, of_one_size in itertools.groupby(cases(), lambda case: case.cpus):
            with cluster(cpus) as resources:
                for case in of_one_size:
                    document["runs"].append(lab.run(case, resources))
                    print(document["runs"][-1], flush=True)
                    write(document, asked.out)  # what is known, should the rest be cut off
        document |= {"decisions": lab.decisions(), "readers": lab.readers()}
        write(document, asked.out)
    print(*document["problems"], f"{len(document['problems'])} problems", sep="\n")
    sys.exit(1 if document["problems"] else 0)


def write(document: dict[str, Any], out: Path) -> None:
    document["problems"] = list(problems(document))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def cases() -> list[Case]:
    """Every container on both places, there with other shards and on another cluster."""
    found = [Case(container=container, place=place, cpus=CPUS[(at + side) % len(CPUS)],
                  shard_members=SHARD_MEMBERS[(at + 2 * side) % len(SHARD_MEMBERS)])
             for at, container in enumerate(KINDS) for side, place in enumerate(PLACES)]
    return sorted(found, key=lambda case: case.cpus)


@contextmanager
def cluster(cpus: int) -> Iterator[Resources]:
    """A cluster of one node; nothing but the number of CPUs is other than in the next one."""
    started = Cluster(initialize_head=True, head_node_args={
        "num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES})
    try:
        with connected(started.address) as resources:
            yield resources
    finally:
        started.shutdown()


class Lab:
    """Photographs, a model, two places, and what is said so far.

    Args:
        source: folder of the dataset.
        settings: of the S3 server.
    """

    def __init__(self, source: Path, work: Path, settings: dict[str, str]) -> None:
        files = sorted(source.glob("MT_*/Imgs/*.jpg"))
        self._photographs: Photographs = {str(file.relative_to(source)): file.read_bytes()
                                          for file in files}
        self._places = {"local": Place(uri=str(work), settings={}),
                        "s3": Place(uri=f"s3://{BUCKET}", settings=settings)}
        self._models = str(work / "models")
        with pinned_threads(2):
            train_category(CategoryTask(data=str(source), category=CATEGORY, models=self._models,
                                        config=preset_config("fast")))
        self._in_process = in_process(f"{self._models}/{CATEGORY}", files)
        self._first: list[Row] = []

    @property
    def described(self) -> dict[str, Any]:
        """The images and the model, and what it says of them without Ray."""
        bundle = registry.load_bundle_at(f"{self._models}/{CATEGORY}")
        return {"images": len(self._photographs), "preset": bundle.preset,
                "model_version": bundle.version, "input_px": bundle.config.image.size,
                "compared": ["name", *COLUMNS, "heatmap", "heatmap_min", "heatmap_max"],
                "in_process": _digests(self._in_process)}

    def run(self, case: Case, resources: Resources) -> dict[str, Any]:
        """Packs, scores and compares."""
        place = self._places[case.place]
        summary = score(request(
            [pack(place, case.container, self._photographs)], models=self._models,
            out=self._out(case).uri, date=DAY, routing=Routing(category=CATEGORY),
            heatmaps="all"), shard_members=case.shard_members)
        found = in_tables(self._out(case), DAY.isoformat())
        self._first = self._first or found
        return {
            **dataclasses.asdict(case), "shards": summary["shards_scored"],
            "workers": resources.pool(summary["shards_scored"]).scorers, "images": len(found),
            "images_per_s": summary["images_per_s"],
            "steady_images_per_s": summary.get("steady_images_per_s"),
            "rejected": sum(summary["rejected"].values()), "exit_code": summary["exit_code"],
            "differing": {"first run": _told(differing(found, self._first)),
                          "in process": _told(differing(found, self._in_process))},
            **_digests(found)}

    def decisions(self) -> dict[str, int]:
        """Photographs by what is decided about them."""
        return dict(Counter(json.loads(said["decision"]) for _, said in self._first))

    def readers(self) -> dict[str, Any]:
        """What each library sees after the first run on each place."""
        firsts = [next(case for case in cases() if case.place == place) for place in PLACES]
        return {case.place: {"container": case.container,
                             **{name: dataclasses.asdict(seen(read, self._out(case)))
                                for name, read in READERS.items()}}
                for case in firsts}

    def _out(self, case: Case) -> Place:
        return self._places[case.place].below(f"out-{case.container}")


def problems(document: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be."""
    for run in document["runs"]:
        bad = {name: found for name, found in run["differing"].items() if found["rows"]}
        if bad or run["rejected"] or run["exit_code"] or run["images"] != document["images"]:
            yield f"{run['container']} on {run['place']}: {bad or run}"
    for place, found in document["readers"].items():
        one, *others = (found[name] for name in READERS)
        size = document["input_px"]
        whole = {**one, "rows": document["images"], "heatmaps": document["images"],
                 "heatmap_sizes": [(size, size)]}
        if one != whole or any(other != one for other in others):
            yield f"readers on {place} do not see the same, or not all of it"


def machine() -> dict[str, Any]:
    model = next((line.split(":", 1)[1].strip() for line in
                  Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {"cpu": model, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}


def _told(wrong: dict[str, list[str]]) -> dict[str, Any]:
    columns = Counter(itertools.chain.from_iterable(wrong.values()))
    return {"rows": len(wrong), **({"columns": dict(columns)} if wrong else {})}


def _digests(found: list[Row]) -> dict[str, str]:
    return {"scores_sha256": digest(found, "score"), "said_sha256": digest(found)}


if __name__ == "__main__":
    main()
