"""One huge archive: memory, and how many workers are busy on it at once.

    python benchmarks/archives.py DATA [--gib 4] [--members 100000] [--only tar,zip]

A tar of so many GiB (the photographs of `mvtec_ad/`, over and over) and a zip of so many small
images lie on a real S3 server on loopback; `igd-ray score --null-scorer` reads, decodes and writes
them. Every half second the proportional set size of the driver and of each worker is taken, and
the CPU time of each worker: one is busy that takes more than a fifth of a core. Results go to
benchmarks/results/archives.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import psutil
from obstore.store import S3Store
from PIL import Image
from spine import commit, family, machine, proportional_kb

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from s3_server import BUCKET, s3_server

from igd.config import preset_config
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category

RESULT = Path(__file__).parent / "results" / "archives.json"
EVERY_S = 0.5
BUSY_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--only", default="tar,zip")
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(), "archives": {}}
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "tar": lambda at: make_tar(options.data / "mvtec_ad", at, int(options.gib * 2**30)),
        "zip": lambda at: make_zip(at, options.members)}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        models = Path(work, "models")
        generate(f"{work}/data", categories=["weave"], train=24, test=1, defective=1, size=64)
        train_category(CategoryTask(data=f"{work}/data", category="weave", models=str(models),
                                    config=preset_config("fast", ["calibration.folds=3"])))
        for kind in options.only.split(","):
            os.environ["IGD_WEED_DIR"] = work
            with s3_server() as settings:
                archive = Path(work, f"huge.{kind}")
                made = makers[kind](archive)
                upload(archive, settings)
                archive.unlink()
                document["archives"][kind] = {**made, **scored(kind, models, Path(work), settings)}
            print(kind, document["archives"][kind], flush=True)
            RESULT.write_text(json.dumps(document, indent=1) + "\n")


def make_tar(source: Path, at: Path, size: int) -> dict[str, Any]:
    photographs = sorted(source.glob("*/*/*/*.png"))
    count = 0
    with tarfile.open(at, "w") as tar:
        while at.stat().st_size < size:
            path = photographs[count % len(photographs)]
            tar.add(path, arcname=f"{count:07d}/{path.name}")
            count += 1
    return {"members": count, "bytes": at.stat().st_size}


def make_zip(at: Path, members: int) -> dict[str, Any]:
    """Small images, each with other pixels."""
    dice = np.random.default_rng(0)
    with zipfile.ZipFile(at, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            pixels = dice.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "png")
            archive.writestr(f"{number:07d}.png", stream.getvalue())
    return {"members": members, "bytes": at.stat().st_size}


def upload(archive: Path, settings: dict[str, str]) -> None:
    store = S3Store(BUCKET, endpoint=settings["AWS_ENDPOINT_URL"], region="us-east-1",
                    access_key_id=settings["AWS_ACCESS_KEY_ID"],
                    secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
                    client_options={"allow_http": True, "timeout": "10m"})
    with open(archive, "rb") as stream:
        obstore.put(store, archive.name, stream, chunk_size=64 * 2**20)


def scored(kind: str, models: Path, work: Path, settings: dict[str, str]) -> dict[str, Any]:
    """Runs the command and watches its processes."""
    summary = work / f"{kind}.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "igd.cli", "score", f"s3://{BUCKET}/huge.{kind}", "--models",
         str(models), "--out", f"s3://{BUCKET}/out", "--date", "2026-01-02", "--category", "weave",
         "--null-scorer", "--json", str(summary)], env={**os.environ, **settings})
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    watch.join()
    if code != 0:
        raise SystemExit(f"exit code {code}")
    found = json.loads(summary.read_text())
    kept = ("planned", "scored", "seconds", "stage_seconds", "step_seconds", "images_per_s",
            "steady_images_per_s", "steady_bytes_per_s", "held_up_by")
    return {**{name: found.get(name) for name in kept}, **watch.found()}


class Watch(threading.Thread):
    """Memory of a driver and of its workers, and how many workers are busy at once."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self.driver = driver
        self._peak: dict[str, int] = {}
        self._busy: list[int] = []
        self._spent: dict[int, float] = {}

    def run(self) -> None:
        while psutil.pid_exists(self.driver) and not self._ended():
            time.sleep(EVERY_S)
            busy = 0
            for pid in family(self.driver):
                name = self._role(pid)
                self._peak[name] = max(self._peak.get(name, 0), proportional_kb(pid))
                busy += name == "worker" and self._works(pid)
            self._busy.append(busy)

    def found(self) -> dict[str, Any]:
        at_work = [count for count in self._busy if count]
        return {"peak_mb": {name: kb // 1024 for name, kb in sorted(self._peak.items())},
                "busy_workers": {"most": max(self._busy, default=0), "mean": round(
                    sum(at_work) / max(len(at_work), 1), 2)}}

    def _ended(self) -> bool:
        try:
            return psutil.Process(self.driver).status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def _role(self, pid: int) -> str:
        try:
            command = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            return "other"
        if pid == self.driver:
            return "driver"
        return "worker" if command.startswith("ray::") else "ray itself"

    def _works(self, pid: int) -> bool:
        try:
            spent = sum(psutil.Process(pid).cpu_times()[:2])
        except psutil.Error:
            return False
        before = self._spent.get(pid, spent)
        self._spent[pid] = spent
        return spent - before > BUSY_SHARE * EVERY_S


if __name__ == "__main__":
    main()
