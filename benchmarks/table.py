"""The results table of the README, from benchmarks/results/spine-*.json.

    python benchmarks/table.py            prints it
    python benchmarks/table.py --write    puts it into README.md, between its two markers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def load(part: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"spine-{part}.json").read_text()))


def table() -> str:
    fast, small, tiles = load("fast"), load("small"), load("tiles")
    lines = [
        "| category, preset | image AUROC | pixel AUROC | training, s | scoring, images/s on one "
        "thread | normals flagged at 5% (95% interval) |",
        "|---|---|---|---|---|---|"]
    for document, preset in ((fast, "fast"), (small, "small")):
        for category in document["runs"][0]["categories"]:
            lines.append(category_row(category, preset, document["runs"]))
    lines += ["", "| command | seconds | peak memory, MB |", "|---|---|---|"]
    for document, name in ((fast, "`train-all`, three categories, `fast`"),
                           (fast, "`evaluate`, the same"),
                           (small, "`train bottle`, `small`"),
                           (tiles, "`train MT_Free`, 952 images, `fast`"),
                           (tiles, "`score` of 1,344 tiles and 10 broken files in a tar")):
        step = {"`tr": "train_all" if document is fast else "train", "`ev": "evaluate",
                "`sc": "score"}[name[:3]]
        spread = document["spread"][step]
        lines.append(f"| {name} | {span(spread['seconds'])} | {span(spread['peak_memory_mb'])} |")
    return "\n".join([*lines, "", prose(fast, small, tiles), ""])


def category_row(category: str, preset: str, runs: list[dict[str, Any]]) -> str:
    numbers = [run["categories"][category] for run in runs]
    first = numbers[0]
    low, high = first["fpr_interval_95"]
    seconds = [run["train_seconds"][category] for run in runs]
    rates = [entry["images_per_s"] for entry in numbers]
    return (f"| {category}, `{preset}` | {first['image_auroc']:.3f} | {first['pixel_auroc']:.3f} "
            f"| {between(seconds)} | {between(rates)} | {first['fpr_realised']:.2f} "
            f"({low:.2f}-{high:.2f}) |")


def prose(fast: dict[str, Any], small: dict[str, Any], tiles: dict[str, Any]) -> str:
    summaries = [run["summary"] for run in tiles["runs"]]
    one = summaries[0]
    steady = between([summary["steady_images_per_s"] for summary in summaries])
    whole = between([summary["images_per_s"] for summary in summaries])
    commits = sorted({document["commit"] for document in (fast, small, tiles)})
    machine = fast["machine"]
    return (f"The tar: {one['planned']:,} members planned, {one['scored']:,} scored, "
            f"{sum(one['rejected'].values())} rejected; {steady} images/s once the pool was warm, "
            f"{whole} with the start of Ray, the audit and the commit. Commit "
            f"{', '.join(commits)}; {machine['cores']} cores ({machine['cpu']}), no GPU, Python "
            f"{machine['python']}; ranges are over {len(fast['runs'])} runs "
            f"({len(small['runs'])} of `small`), AUROC was the same in all. Memory is the sum of "
            "the proportional set sizes of the command and all it started, Ray's own included.")


def span(values: dict[str, float]) -> str:
    return between([values["min"], values["max"]])


def between(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low}-{high}"


def main() -> None:
    if "--write" not in sys.argv:
        print(table())
        return
    readme = ROOT / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    readme.write_text(head + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
