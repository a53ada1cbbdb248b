"""`igd-ray plan`: what a batch run would do."""

from __future__ import annotations

from datetime import date as Date
from typing import Annotated, Any

import typer

from igd.cli.app import app
from igd.cli.options import (
    A_DATE,
    UNKNOWN_CATEGORY,
    Category,
    CategoryColumn,
    CategoryFrom,
    Exclude,
    Include,
    JsonFile,
    Limit,
    Models,
    NewOnly,
    ShardMembers,
    Sources,
    StorageOption,
    UnknownCategory,
)
from igd.cli.output import (
    Counting,
    counted,
    date_of,
    one_of,
    tell,
    warn_of_listing,
    write_json,
)
from igd.errors import ConfigError
from igd.report.sizes import size_of


@app.command()
def plan(
    sources: Sources, models: Models,
    category: Category = None, category_from: CategoryFrom = None,
    category_column: CategoryColumn = None,
    unknown_category: UnknownCategory = "reject",
    include: Include = None, exclude: Exclude = None, limit: Limit = None,
    new_only: NewOnly = False,
    out: Annotated[str | None, typer.Option(
        "--out", metavar="URI", help="With --date: also say how many images are new, beside those "
        "published there for the date. With --new-only: where they are published.")] = None,
    date: Annotated[str | None, typer.Option(
        "--date", metavar=A_DATE, help="What {date} in a source stands for; and see --out.")]
    = None,
    shard_members: ShardMembers = 256, json_file: JsonFile = None,
    storage_option: StorageOption = None,
) -> None:
    """Say what `score` would do: images, bytes, categories, shards, odd sources. Writes nothing.

    Exit 3 where a source is damaged or gone, as `score` would.

    Example: `igd-ray plan dump.tar s3://line1/2026-11-23 --models ./models
    --category-from '{category}/*' --exclude '*/thumbs/*'`
    """
    from igd.data.routing import Routing
    from igd.data.selection import selection
    from igd.pipelines.dated import dated
    from igd.pipelines.preview import preview
    from igd.pipelines.run import inputs

    one_of("--unknown-category", unknown_category, UNKNOWN_CATEGORY)
    if new_only and out is None:
        raise ConfigError("--new-only: new beside which tables? say so with --out URI")
    if not new_only and out is not None and date is None:
        raise ConfigError("--out needs --date: new beside the images of which date?")
    day = date_of(date) if date is not None else None
    wanted = inputs(dated(sources, day), models=models,
                    routing=Routing(category=category, pattern=category_from,
                                    column=category_column),
                    selection=selection(include or (), exclude or (), limit))
    found = preview(
        wanted, published=(out, day) if out is not None and day is not None else None,
        new_only=out if new_only else None, shard_members=shard_members,
        unknown_category=unknown_category, progress=Counting("{} images listed"))
    _print(found, day)
    write_json(json_file, found)
    if found["exit_code"]:
        raise typer.Exit(found["exit_code"])


def _print(found: dict[str, Any], date: Date | None) -> None:
    tell(f"{counted(found['members'], 'image')}, {size_of(found['bytes'])} to read, "
         f"{counted(found['shards'], 'shard')}")
    for category, about in found["categories"].items():
        model = f" ({about['preset']}, {about['version']})" if "version" in about else ""
        tell(f"  {category}: {about['images']}{model}")
    for reason, about in found["rejected"].items():
        tell(f"  would reject {about['images']}: {reason} (first: {about['first']})")
    for category, count in found["unknown_categories"].items():
        tell(f"  no model for category {category}: {count}")
    warn_of_listing(found["members"], found)
    if found["new"] is not None:
        tell(f"  {found['published']} images are published for {date}; {found['new']} of these "
             "are not among them")
