"""`igd-ray files` and `gc`: what the tables consist of, and what is of no use any more."""

from __future__ import annotations

from typing import Annotated

import typer

from igd.cli.app import app
from igd.cli.options import AnyDate, JsonFile, Out, StorageOption
from igd.cli.output import age_of, date_of, say, write_json
from igd.report.sizes import size_of


@app.command()
def files(
    out: Out, date: AnyDate = None,
    table: Annotated[str, typer.Option(
        metavar="scores|heatmaps|sources", help="Whose files.")] = "scores",
    json_file: JsonFile = None, storage_option: StorageOption = None,
) -> None:
    """List the files that a table consists of now, one a line, for readers without Delta support.

    A glob over the folder would also find rows that were replaced. `date` and `category` stand in
    the paths (hive partitioning), not in the files.

    Example: `igd-ray files --out ./out --date 2026-11-23`
    """
    from igd import tables

    found = tables.listing(out, table, date_of(date) if date is not None else None)
    for file in found["files"]:
        print(file["uri"])
    write_json(json_file, found)


@app.command()
def gc(
    out: Out,
    older_than: Annotated[str, typer.Option(
        metavar="AGE", help="Only what has been of no use for so long: hours, days or weeks (36h, "
        "7d, 2w), at least 24h.")] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    json_file: JsonFile = None, storage_option: StorageOption = None,
) -> None:
    """Remove replaced rows, files that no commit names, and the state of dead runs.

    A run is dead when it was never published and nothing of it was written for the age; the same
    command begins it anew. What is published, and what `verify` needs of it, stays.

    Example: `igd-ray gc --out ./out --older-than 7d --dry-run`
    """
    from igd.pipelines.gc import collect

    done = collect(out, older_than=age_of("--older-than", older_than), dry_run=dry_run)
    if dry_run:
        for file in done["files"]:
            print(f"{file['uri']} ({file['why']}, {size_of(file['bytes'])})")
    total = size_of(sum(file["bytes"] for file in done["files"]))
    print(f"{'would remove' if dry_run else 'removed'} {len(done['files'])} files, {total}")
    for why, sums in done["by_reason"].items():
        print(f"  {why}: {sums['files']} files, {size_of(sums['bytes'])}")
    for run in done["runs"]:
        print(f"  dead run {run}")
    if left := sum(done["retired_files"].values()):
        print(f"  {left} files of heatmaps and sources, whose rows are gone or never came, "
              f"{'would leave' if dry_run else 'left'} their tables; they go {older_than} later")
    if done["uploads"]:
        print(f"  {len(done['uploads'])} uploads that never ended")
    for problem in done["problems"]:
        say(f"  {problem}")
    write_json(json_file, done)
    if done["problems"]:
        raise typer.Exit(3)
