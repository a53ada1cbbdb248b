"""A dump of every kind of member, and runs over it."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_runs import do_shards

from igd.data.routing import Routing
from igd.pipelines import score as scoring
from igd.pipelines.parts import make_plan
from igd.pipelines.publish import publish
from igd.pipelines.run import Request, Run, request
from igd.pipelines.shards import read_records

BROKEN = {"weave/empty.png": b"", "weave/page.png": b"<html>gone</html>",
          "nobody/part.png": b"no model for this one", "loose.png": b"not routed"}


@pytest.fixture(scope="session")
def contents(tiny_data: Path) -> dict[str, bytes]:
    """Names and bytes of a dump: 24 good images of two categories and four that are rejected."""
    images = {str(path.relative_to(tiny_data)): path.read_bytes()
              for path in sorted(tiny_data.glob("*/test/*/*.png"))}
    return {**images, **BROKEN}


@pytest.fixture
def dump(contents: dict[str, bytes], tmp_path: Path) -> Callable[[str], str]:
    """Writes the dump as a directory, a (packed) tar, a zip or a Parquet file; gives its path."""
    def write(kind: str) -> str:
        target = tmp_path / f"dump.{kind}"
        if kind == "dir":
            for name, data in contents.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data)
        elif kind == "tar":
            target.write_bytes(as_tar(contents))
        elif kind == "tar.gz":
            target.write_bytes(gzip.compress(as_tar(contents)))
        elif kind == "wds.tar":
            target.write_bytes(as_tar(with_sidecars(contents)))
        elif kind == "tar.zst":
            target.write_bytes(pa.Codec("zstd").compress(as_tar(contents), asbytes=True))
        elif kind == "parquet":
            images = [{"bytes": data, "path": name} for name, data in contents.items()]
            products = [name.split("/")[0] if "/" in name else None for name in contents]
            pq.write_table(pa.table({"product": products, "image": images}), target,
                           row_group_size=10)
        else:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in contents.items():
                    archive.writestr(name, data)
        return str(target)
    return write


def with_sidecars(contents: dict[str, bytes]) -> dict[str, bytes]:
    """A WebDataset's sample for each image: what is said of it comes before and after it."""
    samples: dict[str, bytes] = {}
    for name, data in contents.items():
        stem = name.removesuffix(".png")
        product = name.split("/")[0] if "/" in name else None
        samples |= {f"{stem}.cls": b"1", name: data,
                    f"{stem}.json": json.dumps({"product": product}).encode()}
    return samples


def as_tar(contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def asked(tiny_models: Path, tmp_path: Path) -> Callable[..., Request]:
    """A request for some sources, with the tiny models."""
    def ask(*sources: str, **changes: Any) -> Request:
        settings = {"models": str(tiny_models), "out": str(tmp_path / "out"),
                    "date": date(2026, 1, 2), "routing": Routing(pattern="{category}/*"),
                    **changes}
        return request(sources, **settings)
    return ask


@pytest.fixture
def finished(asked: Callable[..., Request],
             dump: Callable[[str], str]) -> tuple[Run, dict[str, Any], dict[int, Any]]:
    """A run, its plan and its records: shards all written, without a cluster, not published."""
    run = Run(request=asked(dump("tar"), heatmaps="all"), generation=1)
    plan = make_plan(run, shard_members=6)
    do_shards(run, plan, range(plan["shards"]))
    return run, plan, read_records(run.at())


@pytest.fixture
def published_run(finished: tuple[Run, dict[str, Any], dict[int, Any]]) -> Run:
    publish(*finished)
    return finished[0]


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are done one by one in this process; all else is the real run."""
    def inline(run: Run, plan: dict[str, Any], todo: Iterable[int], *_: object) -> None:
        do_shards(run, plan, todo)
    monkeypatch.setattr(scoring, "_score_shards", inline)


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Callable[..., str]:
    """Makes a dump of some images of categories: `folder("d1", weave=3, nobody=2)`."""
    def make(name: str, **counts: int) -> str:
        for category, count in counts.items():
            real = category in ("weave", "washer")
            source = tiny_data / (category if real else "weave") / "test" / "good"
            for path in sorted(source.glob("*.png"))[:count]:
                target = tmp_path / name / category / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return str(tmp_path / name)
    return make
