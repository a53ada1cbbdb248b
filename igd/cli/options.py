"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from igd.errors import ConfigError

Models = Annotated[str, typer.Option("--models", metavar="URI", help="Model registry: a folder "
                                     "or s3://bucket/prefix.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder of category folders: MVTec AD "
                                     "trees (train/good) or plain folders of normal images; a "
                                     "tar (also .gz, .zst), zip or Parquet file may stand for any "
                                     "folder.")]
PresetOption = Annotated[str | None, typer.Option(
    "--preset", metavar="fast|small|paper", help="fast: Gaussian descriptors on features of a "
    "frozen ImageNet network, seconds to fit. small, paper: the nets of the IGD paper, narrow or "
    "at full width. Default: paper where the cluster has GPUs, else fast.")]
SetOption = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Change a setting, such as train.epochs=4 or "
    "image.fit=squash. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
RayAddress = Annotated[str | None, typer.Option(
    "--ray-address", metavar="ADDRESS", help="Ray cluster to use. Default: RAY_ADDRESS, or a "
    "cluster of this machine's cores that is stopped afterwards.")]
Sources = Annotated[list[str], typer.Argument(
    metavar="SRC...", help="Directories, tar (also .gz, .zst), zip, Parquet or images; local "
    "or s3://. Patterns such as 's3://dumps/2026-11-*/cam?.tar': *, ? and [...] match within a "
    "path segment, ** any number of segments; quote them from the shell. {date} stands for the "
    "date, {date:%Y/%m/%d} for that form of it.")]
Category = Annotated[str | None, typer.Option(
    "--category", metavar="NAME", help="Score everything with one model.")]
CategoryFrom = Annotated[str | None, typer.Option(
    "--category-from", metavar="PATTERN", help="Read the category from each path below its source, "
    "or below what is before its first wildcard (in an archive: each member's name), such as "
    "'{category}/*'; * stands for any characters, also /.")]
CategoryColumn = Annotated[str | None, typer.Option(
    "--category-column", metavar="NAME", help="Read the category from this column of each row, in "
    "Parquet sources, or from this field of the .json beside an image, in WebDataset tars.")]
UNKNOWN_CATEGORY = ("reject", "error")
UnknownCategory = Annotated[str, typer.Option(
    "--unknown-category", metavar="reject|error", help="What becomes of an image whose category "
    "has no model: a row with that reason, or nothing is published (exit 2).")]
Include = Annotated[list[str] | None, typer.Option(
    "--include", metavar="PATTERN", help="Only images whose path (as for --category-from) this "
    "matches whole; * stands for any characters, also /. Repeatable. One that matches nothing is "
    "an error.")]
Exclude = Annotated[list[str] | None, typer.Option(
    "--exclude", metavar="PATTERN", help="No image whose path this matches. Repeatable. One that "
    "matches nothing is a warning.")]
Limit = Annotated[int | None, typer.Option(
    "--limit", metavar="N", help="Only the first N images, in source order: for trials. Their rows "
    "replace those of their categories for the date, as any run's do; give an --out of its own.")]
NewOnly = Annotated[bool, typer.Option(
    "--new-only", help="Leave out images that are published in --out with the same model under "
    "any date, and add the others to the date instead of replacing its categories: for dumps that "
    "grow. Images that could not be read are tried again.")]
ShardMembers = Annotated[int, typer.Option(
    "--shard-members", min=1, help="Images per unit of work; does not affect results.")]
Out = Annotated[str, typer.Option("--out", metavar="URI", help="Where the tables are.")]
A_DATE = "YYYY-MM-DD|yesterday|today"
DateOption = Annotated[str, typer.Option(
    "--date", metavar=A_DATE, help="The date the rows belong to; yesterday and today are UTC's.")]
AnyDate = Annotated[str | None, typer.Option(
    "--date", metavar=A_DATE, help="The date the rows belong to. Default: every date.")]
Retrain = Annotated[bool, typer.Option(
    "--retrain", help="Also where a model of the same images, settings and code is there.")]
MemoryPerModel = Annotated[str | None, typer.Option(
    "--memory-per-model", metavar="SIZE", help="Memory that each worker of a category may take, "
    "such as 512MiB or 4GiB; it is asked of Ray. Categories beyond it are kept in scratch files: "
    "slower, the same weights. Default: an even share, for all that run at once, of what Ray has "
    "on each node.")]
ScratchOption = Annotated[str | None, typer.Option(
    "--scratch", metavar="DIR", help="Folder on a local disk of every node, for categories beyond "
    "memory; nothing is left in it. Default: the system's for temporary files.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", dir_okay=False,
                                               help="Also write the result as JSON.")]


def _use_storage_options(pairs: list[str] | None) -> list[str] | None:
    """Makes them hold before the command begins: they are no argument of what it calls."""
    from igd.storage import options

    if pairs:
        options.use(pairs)
    return pairs


StorageOption = Annotated[list[str] | None, typer.Option(
    "--storage-option", metavar="KEY=VALUE", callback=_use_storage_options, help="About S3, what "
    "environment and profile do not say: region, endpoint, virtual_hosted_style_request, "
    "skip_signature, request_payer, allow_http, allow_invalid_certificates or proxy_url, such as "
    "request_payer=true. No credentials. Repeatable.")]


def bytes_of(text: str | None, option: str) -> int | None:
    """Bytes of `512MiB`, `4GiB`, ...; None of None.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([MGT])iB", text)
    size = int(float(found[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[found[2]]) if found else 0
    if not size:
        raise ConfigError(f"{option} {text!r}: expected a size such as 512MiB or 4GiB")
    return size
