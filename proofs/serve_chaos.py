"""Holds `igd-ray serve` against the CLI and batch runs, and disturbs it under load.

    PYTHONPATH=tests python proofs/serve_chaos.py [DATA] [--rounds 3] [--requests 2000]

    parity      DATA holds `mvtec_ad/`: images of bottle through Python, a batch run of a folder,
                one of a tar in other shards, and the endpoint one by one, together, and by
                the Open Inference Protocol: the same bits and decisions
    many        20 categories, memory for about 4 of them in each of two scorers: every answer of
                many interleaved requests is the right one; models evicted are counted
    replica     one of two scorers is killed under load: no request fails but those it had
    scorer      the same behind two ingresses: no request fails
    ingress     one of these is killed under load: no request fails but those it had
    promotion   a version is promoted, a damaged one is put in use, and rolled back, under load
    stop        SIGTERM under load

Clients ask in closed loops, at most as many at a time as the endpoint takes on, so that a refusal
counts as a failure too. Exits with 1 where anything is not as it should be; results are written to
proofs/results/serve_chaos.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
from endpoints import Load, free_port, replicas_below, wait_until_ready
from serving import another_version, damage

from igd import registry, tables
from igd.cli.output import commit
from igd.config import preset_config
from igd.data.images import decode
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category
from igd.registry import production
from igd.score.scorer import Scorer, pinned_threads

RESULT = Path(__file__).parent / "results" / "serve_chaos.json"
DAY = date(2026, 1, 2)
PARITY_IMAGES, CATEGORIES, KEPT = 50, 20, 4
MIB = 1 << 20
Found = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="without it, parity is left out")
    parser.add_argument("--rounds", type=int, default=3, help="of each disturbance")
    parser.add_argument("--requests", type=int, default=2000, help="over the 20 categories")
    parser.add_argument("--kinds", default="parity,many,replica,scorer,ingress,promotion,stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    tree = commit()
    os.environ["OMP_NUM_THREADS"] = "1"
    cases: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="igd") as folder, pinned_threads(1):
        lab = Lab(Path(folder), random.Random(asked.seed))
        for kind in asked.kinds.split(","):
            for found in _cases(lab, kind, asked):
                cases.append({"kind": kind, **found})
                print(json.dumps(cases[-1]), flush=True)
                document = {"commit": tree, "seed": asked.seed, "cases": cases,
                            "problems": sum(len(case["problems"]) for case in cases)}
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if any(case["problems"] for case in cases) else 0)


def _cases(lab: Lab, kind: str, asked: argparse.Namespace) -> Iterator[Found]:
    if kind == "parity":
        if asked.data is not None:
            yield parity(lab, asked.data.resolve() / "mvtec_ad")
    elif kind == "many":
        yield many(lab, asked.requests)
    elif kind == "stop":
        for _ in range(asked.rounds):
            yield stop(lab)
    else:
        disturb: Callable[[Lab, Server, Load], list[str]] = DISTURBANCES[kind]
        ahead = ("--ingress", "2") if kind in ("scorer", "ingress") else ()
        with lab.serving("--scorers", "2", *ahead) as server:
            for _ in range(asked.rounds):
                yield under_load(lab, server, disturb)


@dataclass
class Server:
    """An endpoint that runs."""

    process: subprocess.Popen[str]
    url: str


class Lab:
    """Models and images that all cases share, and endpoints over them."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.models = str(folder / "models")
        generate(str(folder / "data"), categories=["weave"], train=24, test=6, defective=2)
        train_category(CategoryTask(data=str(folder / "data"), category="weave",
                                    models=self.models, config=preset_config("fast")))
        self.image = min(folder.glob("data/weave/test/[!g]*/*.png")).read_bytes()

    @contextlib.contextmanager
    def serving(self, *options: str, models: str | None = None) -> Iterator[Server]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "igd.cli", "serve", "--models", models or self.models,
             "--port", str(port), "--follow-s", "0.5", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url)
            yield Server(process=process, url=url)
        finally:
            process.terminate()
            process.communicate()


def parity(lab: Lab, data: Path) -> Found:
    """The same images by every way in."""
    models = str(lab.folder / "bottle-models")
    train_category(CategoryTask(data=str(data), category="bottle", models=models,
                                config=preset_config("fast")))
    paths = sorted(data.glob("bottle/test/*/*.png"))
    images = {path: path.read_bytes() for path in lab.dice.sample(paths, PARITY_IMAGES)}
    scorer = Scorer.load(f"{models}/bottle")
    judge = scorer.judge()
    expected = []
    for content in images.values():
        pixels = decode(content, max_pixels=scorer.bundle.config.image.max_pixels)
        batch = scorer.score([pixels])
        verdict = judge.assess(float(batch.scores[0]), batch.heatmaps[0], pixels.shape[1::-1])
        expected.append((float(batch.scores[0]), verdict.p_value, str(verdict.decision)))
    ways = {"folder": _batch(lab, models, _folder(lab, images)),
            "tar": _batch(lab, models, _tar(lab, images), "--shard-members", "7")}
    with lab.serving(models=models) as server, httpx.Client(timeout=120) as client:
        ways |= {name: ask(client, f"{server.url}", list(images.values()))
                 for name, ask in (("endpoint", _one_by_one), ("together", _together),
                                   ("inference protocol", _inference))}
    differing = {name: sum(one[:3] != other[:3] for one, other in
                           zip(expected, said, strict=True)) for name, said in ways.items()}
    return {"images": len(images), "preset": "fast", "differing": differing,
            "decisions": dict(Counter(decision for _, _, decision in expected)),
            "problems": [f"{name}: {count} differ" for name, count in differing.items() if count]}


Said = list[tuple[float, float, str]]


def _folder(lab: Lab, images: dict[Path, bytes]) -> Path:
    folder = lab.folder / "dump"
    folder.mkdir()
    for number, content in enumerate(images.values()):
        (folder / f"{number:03d}.png").write_bytes(content)
    return folder


def _tar(lab: Lab, images: dict[Path, bytes]) -> Path:
    path = lab.folder / "dump.tar"
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            archive.add(image, f"{number:03d}.png")
    return path


def _batch(lab: Lab, models: str, source: Path, *options: str) -> Said:
    """`igd-ray score`, in the order of the names."""
    out = f"{source}-out"
    subprocess.run([sys.executable, "-m", "igd.cli", "score", str(source), "--models", models,
                    "--out", out, "--date", DAY.isoformat(), "--category", "bottle", *options],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
    rows = sorted(tables.read(out, "scores", DAY).to_pylist(),
                  key=lambda row: (row["member"] or row["source_uri"]))
    return [(row["score"], row["p_value"], row["decision"]) for row in rows]


def _said(reply: dict[str, Any]) -> tuple[float, float, str]:
    return reply["score"], reply["p_value"], reply["decision"]


def _one_by_one(client: httpx.Client, url: str, images: list[bytes]) -> Said:
    return [_said(client.post(f"{url}/v1/categories/bottle/score", content=image).json())
            for image in images]


def _together(client: httpx.Client, url: str, images: list[bytes]) -> Said:
    files = [("images", (f"{number}.png", image)) for number, image in enumerate(images)]
    reply = client.post(f"{url}/v1/categories/bottle/score-batch", files=files).json()
    return [_said(item["result"]) for item in reply["results"]]


def _inference(client: httpx.Client, url: str, images: list[bytes]) -> Said:
    said: Said = []
    for image in images:
        request = json.dumps({
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
                        "parameters": {"binary_data_size": len(image) + 4}}],
            "outputs": [{"name": name} for name in ("score", "p_value", "decision")]}).encode()
        body = request + len(image).to_bytes(4, "little") + image
        reply = client.post(f"{url}/v2/models/bottle/infer", content=body, headers={
            "inference-header-content-length": str(len(request))}).json()
        values = {output["name"]: output["data"][0] for output in reply["outputs"]}
        said.append((values["score"], values["p_value"], values["decision"]))
    return said


def many(lab: Lab, requests: int) -> Found:
    """20 categories in scorers that keep about four."""
    models, right = str(lab.folder / "many"), {}
    for number in range(CATEGORIES):
        data, name = str(lab.folder / f"many-data-{number}"), f"product-{number:02d}"
        generate(data, categories=["washer"], train=20, test=1, defective=1, size=64, seed=number)
        Path(data, "washer").rename(Path(data, name))
        train_category(CategoryTask(data=data, category=name, models=models, config=preset_config(
            "fast", ["image.size=64", "calibration.folds=4"])))
        scorer = Scorer.load(f"{models}/{name}")
        pixels = decode(lab.image, max_pixels=10**7)
        right[name] = float(scorer.score([pixels]).scores[0])
    size = sum(t.nbytes for t in scorer.bundle.model.state_dict().values())
    order = [lab.dice.choice(sorted(right)) for _ in range(requests)]
    kept = max(1, round(KEPT * size / MIB))
    began = time.monotonic()
    with lab.serving("--scorers", "2", "--model-mib", str(kept), models=models) as server, \
            httpx.Client(timeout=60, base_url=server.url) as client, ThreadPoolExecutor(4) as pool:
        def ask(name: str) -> tuple[int, float | None]:
            reply = client.post(f"/v1/categories/{name}/score", content=lab.image)
            return reply.status_code, reply.json().get("score")
        answers = list(pool.map(ask, order))
        evicted = _metric(client.get("/metrics").text, "igd_models_evicted_total")
    wrong = sum(status == 200 and score != right[name]
                for name, (status, score) in zip(order, answers, strict=True))
    failed = sum(status != 200 for status, _ in answers)
    return {"categories": CATEGORIES, "different_scores": len(set(right.values())),
            "model_bytes": size, "budget_mib": kept, "requests": requests, "wrong": wrong,
            "failed": failed, "evicted": evicted, "seconds": round(time.monotonic() - began, 1),
            "problems": [*([f"{wrong} wrong answers"] if wrong else []),
                         *([f"{failed} failed"] if failed else []),
                         *(["nothing was evicted"] if evicted < CATEGORIES else [])]}


def _metric(page: str, name: str) -> float:
    """The sum of a metric over all processes."""
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines()
               if line.startswith(name + "{"))


def under_load(lab: Lab, server: Server, disturb: Callable[[Lab, Server, Load], list[str]]
               ) -> Found:
    """One disturbance while clients ask."""
    began = time.monotonic()
    with Load(server.url, lab.image) as load:
        load.wait_for(20 + lab.dice.randrange(20))
        problems = disturb(lab, server, load)
        load.wait_for(40)
    excused = load.clients if disturb in map(DISTURBANCES.get, ("replica", "ingress")) else 0
    return {"seconds": round(time.monotonic() - began, 1),
            **_counted(load, {"200"}, problems, excused)}


def _counted(load: Load, fine: set[str], problems: list[str], excused: int = 0) -> Found:
    """What came of a load; so many failures, in flight where a replica was killed, are excused."""
    codes = Counter({str(code): 0 for code in fine})
    for (code, _, _), count in load.answers.items():
        codes[str(code)] += count
    scores = {(version, score) for code, version, score in load.answers if code == 200}
    if len(scores) != len({version for version, _ in scores}):
        problems = [*problems, f"one version gave several scores: {scores}"]
    failed = {code: count for code, count in codes.items() if code not in fine}
    if sum(failed.values()) > excused:
        problems = [*problems, *(f"{count} requests ended in {code}"
                                 for code, count in failed.items())]
    return {"answers": dict(codes), "versions": len(scores), "problems": problems}


def kill(kind: str) -> Callable[[Lab, Server, Load], list[str]]:
    """Kills one replica of a kind, and waits until there are as many again."""
    def disturb(lab: Lab, server: Server, load: Load) -> list[str]:
        before = replicas_below(server.process.pid, kind)
        lab.dice.choice(before).kill()
        deadline = time.monotonic() + 60
        while len(replicas_below(server.process.pid, kind)) < len(before):
            if time.monotonic() > deadline:
                return [f"no {kind} came after the one that was killed"]
            load.wait_for(1)
        return []
    return disturb


def promotion(lab: Lab, server: Server, load: Load) -> list[str]:
    """A whole version, then a damaged one, then back."""
    second, broken = (another_version(lab.models, "weave") for _ in range(2))
    registry.promote(lab.models, "weave", second)
    problems = _until(load, lambda: any(said[1] == second for said in load.answers), "promotion")
    damage(lab.models, "weave", broken)
    production.append(lab.models, "weave", broken, "by hand")
    problems += _until(load, lambda: _state(server) == "stale", "stale")
    load.wait_for(20)
    if any(said[1] == broken for said in load.answers):
        problems.append("a damaged version answered")
    registry.promote(lab.models, "weave", second)
    return problems + _until(load, lambda: _state(server) == "ready", "ready again")


def _state(server: Server) -> str:
    return str(httpx.get(f"{server.url}/readyz").json()["categories"]["weave"])


def _until(load: Load, holds: Callable[[], bool], what: str) -> list[str]:
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return [f"{what}: not within 30 s"]
        load.wait_for(1)
    return []


DISTURBANCES: dict[str, Callable[[Lab, Server, Load], list[str]]] = {
    "replica": kill("Ingress"), "scorer": kill("Scorer"), "ingress": kill("Ingress"),
    "promotion": promotion}


def stop(lab: Lab) -> Found:
    """SIGTERM; connections that come too late are refused, and none is cut off."""
    with lab.serving("--scorers", "2") as server:
        with Load(server.url, lab.image) as load:
            load.wait_for(20 + lab.dice.randrange(20))
            began = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(timeout=60)
            seconds = time.monotonic() - began
        code = server.process.poll()
        left = [process.pid for process in psutil.process_iter(["cmdline"])
                if "ServeReplica:igd" in " ".join(process.info["cmdline"] or [])
                and process.ppid() == server.process.pid]
    problems = [*([f"exit code {code}"] if code else []), *([f"left {left}"] if left else []),
                *(["took over 30 s"] if seconds > 30 else [])]
    return {"seconds": round(seconds, 1), **_counted(load, {"200", "ConnectError"}, problems)}


if __name__ == "__main__":
    main()
