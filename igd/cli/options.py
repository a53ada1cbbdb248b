"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Models = Annotated[str, typer.Option("--models", metavar="URI", help="Model registry: a folder "
                                     "or s3://bucket/prefix.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder of category folders: MVTec AD "
                                     "trees (train/good) or plain folders of normal images; a tar "
                                     "or zip may stand for any folder.")]
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
Out = Annotated[str, typer.Option("--out", metavar="URI", help="Where the tables are.")]
DateOption = Annotated[str, typer.Option("--date", metavar="YYYY-MM-DD",
                                         help="The date the rows belong to.")]
AnyDate = Annotated[str | None, typer.Option(
    "--date", metavar="YYYY-MM-DD", help="The date the rows belong to. Default: every date.")]
Retrain = Annotated[bool, typer.Option(
    "--retrain", help="Also where a model of the same images, settings and code is there.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", dir_okay=False,
                                               help="Also write the result as JSON.")]
