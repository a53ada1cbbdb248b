"""`igd-ray files`: what stands in the tables."""

from __future__ import annotations

from typing import Annotated

import typer

from igd.cli.app import app
from igd.cli.options import AnyDate, JsonFile, Out
from igd.cli.output import date_of, write_json


@app.command()
def files(
    out: Out, date: AnyDate = None,
    table: Annotated[str, typer.Option(
        metavar="scores|heatmaps|sources", help="Whose files.")] = "scores",
    json_file: JsonFile = None,
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
