"""`igd-ray synth`, `demo` and `data`: images to try things with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from igd.cli.app import app, data_app
from igd.cli.options import Seed, StorageOption
from igd.cli.output import names_of, say


@app.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="New folder for the images.")],
    categories: Annotated[str | None, typer.Option(metavar="A,B", help="Default: all.")] = None,
    train: Annotated[int, typer.Option(help="Normal training images per category.")] = 60,
    test: Annotated[int, typer.Option(help="Normal test images per category.")] = 12,
    defective: Annotated[int, typer.Option(
        help="Test images per kind of defect; each category has three.")] = 5,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side in pixels.")] = 256,
    seed: Seed = 0,
) -> None:
    """Make synthetic product images with planted defects and masks, as an MVTec AD tree.

    Example: `igd-ray synth /tmp/products --categories weave,washer`
    """
    from igd.data.products import CATEGORIES
    from igd.data.synthetic import generate

    names = names_of(categories) or list(CATEGORIES)
    count = generate(out, categories=names, train=train, test=test, defective=defective,
                     size=size, seed=seed)
    print(f"{count} images of {len(names)} categories ({', '.join(names)}) in {out}")


@data_app.command("magnetic-tile")
def data_magnetic_tile(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder with MT_Free, MT_Crack "
                                          "...; local or s3://.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Gets the category `tile`.")],
    test_share: Annotated[float, typer.Option(
        help="Share of the normal images that goes to the test set, about.")] = 0.2,
    seed: Seed = 0, storage_option: StorageOption = None,
) -> None:
    """Split the magnetic-tile dataset without near-twins on both sides.

    Most of its normal tiles were photographed under several exposures; all of one tile's
    photographs go to training or all to test.

    Example: `igd-ray data magnetic-tile Magnetic-tile-defect-datasets tiles`
    """
    from igd.data.magnetic_tile import CATEGORY, arrange

    found = arrange(source, out, test_share=test_share, seed=seed)
    print(f"{out}/{CATEGORY}: {found.train} normal images of {found.train_clusters} tiles to "
          f"train, {found.test_good} of {found.test_clusters} to test, "
          f"{sum(found.defects.values())} defective ones")
    for key in found.empty_masks:
        say(f"  {key} marks nothing")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")] = Path("demo"),
) -> None:
    """Run everything on synthetic data: train, evaluate, score an archive, verify, report.

    Example: `igd-ray demo --out /tmp/demo`
    """
    import subprocess

    from igd.demo import run_demo

    def command(line: list[str]) -> None:
        subprocess.run([sys.executable, "-m", "igd.cli", *line], check=True)

    try:
        run_demo(out, command, lambda text: print(text, flush=True))
    except subprocess.CalledProcessError as failed:
        raise typer.Exit(failed.returncode) from failed
