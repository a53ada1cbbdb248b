"""The whole of igd-ray on synthetic data, in a few minutes on a laptop."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from datetime import date as Date
from pathlib import Path

from igd.data.synthetic import generate
from igd.errors import ConfigError

CATEGORIES = ("weave", "washer", "board")
MARKER = ".igd-demo"
DATE = Date(2026, 1, 1)

Step = Callable[..., None]


def run_demo(out: Path, command: Callable[[list[str]], None], say: Callable[[str], None]) -> None:
    """Makes data, then runs the commands that a user would.

    Args:
        out: a new folder, or that of an earlier demo.
        command: runs one igd-ray command line.
        say: prints a line.

    Raises:
        ConfigError: `out` holds something else.
    """
    began = time.monotonic()
    _claim(out)
    data, models, tables = out / "data", out / "models", out / "out"
    archive = out / "dump.tar"
    say(f"synthetic products -> {data}")
    generate(str(data), categories=CATEGORIES)
    _pack(data, archive)
    where = ["--out", str(tables), "--date", DATE.isoformat()]
    for line in (
        ["train-all", str(data), "--models", str(models), "--preset", "fast"],
        ["evaluate", str(data), "--models", str(models), "--json", str(out / "evaluate.json"),
         "--html", str(out / "evaluate.html")],
        ["score", str(archive), "--models", str(models), *where,
         "--category-from", "{category}/*", "--heatmaps", "all", "--max-reject-share", "0.05",
         "--shard-members", "32", "--json", str(out / "score.json")],
        ["verify", *where],
        ["report", *where],
    ):
        say(f"\n$ igd-ray {' '.join(line)}")
        command(line)
    say(f"\ndemo done in {time.monotonic() - began:.0f} s")
    say(f"  tables: {tables}/scores {tables}/heatmaps {tables}/sources")
    say(f"  evaluation: {out / 'evaluate.html'}")
    say(f"  report: {tables}/reports/{DATE.isoformat()}.html")


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ConfigError(f"{out} holds something else; expected a new folder, or that of an "
                          "earlier demo; give another with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _pack(data: Path, archive: Path) -> None:
    """The test images of all categories as one tar, and three files that are no images."""
    broken = {"weave/empty.png": b"", "washer/page.png": b"<html>gone</html>",
              "unknown/part.png": next(data.glob("weave/test/good/*.png")).read_bytes()}
    with tarfile.open(archive, "w") as tar:
        for path in sorted(data.glob("*/test/*/*.png")):
            tar.add(path, arcname=str(path.relative_to(data)))
        for name, content in broken.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
