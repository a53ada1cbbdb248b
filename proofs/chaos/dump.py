"""Images in a tar, a zip and a folder, and the list of them that everything is checked against."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.places import Place

Key = tuple[str, str, int]
"""Source, name in the archive ("" for a file), place among the archive's members."""

BAD = {"weave/empty.png": b"", "weave/page.png": b"<html><body>Not here</body></html>"}


@dataclass(kw_only=True)
class Dump:
    """What a run is given.

    Attributes:
        members: whether each can be scored.
    """

    sources: list[str] = field(default_factory=list)
    members: dict[Key, bool] = field(default_factory=dict)


def upload(place: Place, products: Path, dice: random.Random, images: int) -> Dump:
    """Puts products, a folder of images for each, as three sources into a place.

    Two fifths of the images go into the tar and the zip each; the rest, some of them more than
    once and with a few files that are no image, into the folder.
    """
    pictures = list(_pictures(products, dice, images))
    dump, share = Dump(), 2 * len(pictures) // 5
    _tar(dump, place, pictures[:share])
    _zip(dump, place, pictures[share:2 * share])
    loose = dict(pictures[2 * share:])
    name, data = pictures[-1]
    _folder(dump, place, {**loose, **BAD, f"{name}.again.png": data, "washer/cut.png": data[:99]})
    return dump


def _pictures(products: Path, dice: random.Random, images: int) -> Iterator[tuple[str, bytes]]:
    """Names that begin with the category, each image with its bytes."""
    files = sorted(products.glob("*/test/*/*.png"))
    for number, file in enumerate(dice.sample(files, images)):
        category, _, kind = file.relative_to(products).parts[:3]
        yield f"{category}/{kind}-{number:03d}.png", file.read_bytes()


def _tar(dump: Dump, place: Place, pictures: list[tuple[str, bytes]]) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in pictures:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _archive(dump, place, "dump.tar", sink.getvalue(), pictures)


def _zip(dump: Dump, place: Place, pictures: list[tuple[str, bytes]]) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures:
            archive.writestr(name, data)
    _archive(dump, place, "dump.zip", sink.getvalue(), pictures)


def _archive(dump: Dump, place: Place, name: str, data: bytes,
             pictures: list[tuple[str, bytes]]) -> None:
    place.write(name, data)
    uri = f"{place.uri}/{name}"
    dump.sources.append(uri)
    dump.members |= {(uri, member, ordinal): True for ordinal, (member, _) in enumerate(pictures)}


def _folder(dump: Dump, place: Place, files: dict[str, bytes]) -> None:
    dump.sources.append(f"{place.uri}/loose")
    for name, data in files.items():
        place.write(f"loose/{name}", data)
        good = name not in BAD and not name.endswith("cut.png")
        dump.members[f"{place.uri}/loose/{name}", "", 0] = good
