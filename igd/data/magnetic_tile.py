"""The magnetic-tile defect dataset (Huang et al., 2018) as one category of MVTec AD.

::

    SOURCE/MT_Free/Imgs/a.jpg                  OUT/tile/train/good/a.jpg or test/good/a.jpg
    SOURCE/MT_Crack/Imgs/b.jpg            ->   OUT/tile/test/crack/b.jpg
    SOURCE/MT_Crack/Imgs/b.png                 OUT/tile/ground_truth/crack/b_mask.png

It comes without a split, and most of its normal images have near-twins (one tile under several
exposures), so the normal ones are split by cluster of near-twins.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igd.config import ImageConfig
from igd.data.images import decode
from igd.data.twins import cluster_near_twins, split_by_cluster
from igd.errors import DataError, ImageError
from igd.storage import Entry, exists_dir, join, list_objects, read_bytes, write_bytes

__all__ = ["CATEGORY", "DEFECTS", "Arrangement", "arrange"]

CATEGORY = "tile"
DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")

_LAYOUT = ("expected MT_Free/Imgs/*.jpg and, with a .png mask beside every .jpg, "
           + ", ".join(f"MT_{defect.capitalize()}" for defect in DEFECTS))


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """What `arrange` wrote.

    Attributes:
        train, test_good: normal images on either side of the split.
        train_clusters, test_clusters: the clusters of near-twins that they are.
        defects: images by defect.
        empty_masks: keys of masks that mark nothing; their images count as defective all the same.
    """

    train: int
    test_good: int
    train_clusters: int
    test_clusters: int
    defects: Mapping[str, int]
    empty_masks: tuple[str, ...]


def arrange(source_uri: str, out_uri: str, *, test_share: float = 0.2,
            seed: int = 0) -> Arrangement:
    """Writes `OUT/tile` in the layout of MVTec AD.

    JPEGs keep their bytes; masks become binary, 255 where the source has more than 127.
    The same call may be repeated, or taken up where it broke off.

    Args:
        test_share: of the normal images, the part that goes to test/good, about.
        seed: of the split.

    Raises:
        ConfigError: `test_share` out of range.
        DataError: the source is incomplete or damaged, or the output holds other files, such as
            those of another split.
    """
    normals, *defective = (_images(source_uri, name) for name in ("free", *DEFECTS))
    label_N = cluster_near_twins(_decoded(normals))
    train, test = split_by_cluster(label_N, test_share, seed)
    copies = {f"train/good/{normals[i].key}": normals[i] for i in train}
    copies |= {f"test/good/{normals[i].key}": normals[i] for i in test}
    masks: dict[str, bytes] = {}
    empty: list[str] = []
    for defect, entries in zip(DEFECTS, defective, strict=True):
        for entry, mask_HW in zip(entries, _masks(source_uri, defect, entries), strict=True):
            copies[f"test/{defect}/{entry.key}"] = entry
            key = f"ground_truth/{defect}/{PurePosixPath(entry.key).stem}_mask.png"
            masks[key] = _png(mask_HW)
            if not mask_HW.any():
                empty.append(key)
    root = join(out_uri, CATEGORY)
    _check_foreign(root, copies.keys() | masks.keys())
    for key, entry in copies.items():
        write_bytes(join(root, *key.split("/")), read_bytes(entry.uri))
    for key, png in masks.items():
        write_bytes(join(root, *key.split("/")), png)
    return Arrangement(
        train=len(train), test_good=len(test), train_clusters=len(np.unique(label_N[train])),
        test_clusters=len(np.unique(label_N[test])), empty_masks=tuple(empty),
        defects={defect: len(found) for defect, found in zip(DEFECTS, defective, strict=True)})


def _images(source_uri: str, name: str) -> list[Entry]:
    """The JPEGs of one folder, sorted by name."""
    folder = _folder(source_uri, name)
    found = [entry for entry in list_objects(folder) if "/" not in entry.key
             and entry.key.lower().endswith(".jpg") and not entry.key.startswith(".")]
    if not found:
        raise DataError(f"no image in {folder}; {_LAYOUT}; check the path"
                        + ("" if exists_dir(source_uri) else f", there is no {source_uri}"))
    return sorted(found, key=lambda entry: entry.key)


def _folder(source_uri: str, name: str) -> str:
    return join(source_uri, f"MT_{name.capitalize()}", "Imgs")


def _masks(source_uri: str, defect: str, entries: Sequence[Entry]) -> Iterator[NDArray[np.bool_]]:
    """The mask of each image, of its size."""
    folder = _folder(source_uri, defect)
    found = {PurePosixPath(entry.key).stem: entry for entry in list_objects(folder)
             if entry.key.lower().endswith(".png") and not entry.key.startswith(".")}
    missing = [e.key for e in entries if PurePosixPath(e.key).stem not in found]
    if missing:
        raise DataError(f"no mask for {len(missing)} images of {folder}, the first {missing[0]}; "
                        f"{_LAYOUT}; get the dataset again")
    masks = [found[PurePosixPath(entry.key).stem] for entry in entries]
    for image, mask, image_HWC, mask_HWC in zip(entries, masks, _decoded(entries),
                                                _decoded(masks), strict=True):
        if image_HWC.shape != mask_HWC.shape:
            (h, w, _), (mask_h, mask_w, _) = image_HWC.shape, mask_HWC.shape
            raise DataError(f"{mask.uri} is {mask_w}x{mask_h} px, {image.uri} {w}x{h} px; expected "
                            "the same size; get the dataset again")
        yield mask_HWC[..., 0] > 127  # the source has greys between 0 and 255


def _decoded(entries: Sequence[Entry]) -> Iterator[NDArray[np.uint8]]:
    for entry in entries:
        try:
            if entry.problem:
                raise ImageError(entry.problem, "cannot be opened")
            yield decode(read_bytes(entry.uri), max_pixels=ImageConfig().max_pixels)
        except ImageError as error:
            raise DataError(f"{entry.uri} cannot be used ({error}); expected a whole image; "
                            "get the dataset again") from None


def _png(mask_HW: NDArray[np.bool_]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask_HW.astype(np.uint8) * 255).save(stream, "PNG")
    return stream.getvalue()


def _check_foreign(root: str, planned: set[str]) -> None:
    """Files of another split would put twins, or one image, on both sides."""
    found = {entry.key for entry in list_objects(root)
             if not PurePosixPath(entry.key).name.startswith(".")}  # what a killed write left
    foreign = sorted(found - planned)
    if foreign:
        raise DataError(f"{root} holds {len(foreign)} files that this split does not write, the "
                        f"first {foreign[0]}; expected a new folder or that of the same call; "
                        "delete it or choose another")
