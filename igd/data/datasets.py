"""Training and test images of a category: the MVTec AD tree, or plain folders.

::

    DATA/bottle/train/good/000.png            normals
    DATA/bottle/test/good/000.png             normal test images
    DATA/bottle/test/scratch/000.png          defective test images
    DATA/bottle/ground_truth/scratch/000_mask.png

A plain folder holds nothing but normals, in sub-folders or not; where it has a folder `good`,
they are in there. A tar, zip or Parquet file may stand for any of these folders, or for DATA
(`igd.data.trees`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from igd.config import NAME_PATTERN, Config, ImageConfig
from igd.data.images import Geometry, prepare, prepare_mask
from igd.data.trees import (
    EXTENSIONS,
    ImageRef,
    category_tree,
    is_there,
    outline,
    read_image,
    read_images,
)
from igd.errors import DataError, ImageError, StorageError
from igd.storage import exists_dir, join, list_dirs

_HELD_OUT = re.compile(r"(test|ground_truth)(-\d+-of-\d+.*)?")
"""Folders of no normals to train on; also as the shards of a split are named."""

_LAYOUT = "expected CATEGORY/train/good/*.png (MVTec AD), CATEGORY/*.png or CATEGORY/good/*.png"


@dataclass(frozen=True)
class TestImage:
    """One labelled test image.

    Attributes:
        defect: name of its folder; `good` is normal.
        mask: which pixels are anomalous, where the tree has it.
    """

    __test__: ClassVar[bool] = False  # keeps pytest from collecting it

    ref: ImageRef
    defect: str
    is_anomalous: bool
    mask: ImageRef | None


@dataclass(frozen=True)
class Loaded:
    """The readable images of a category.

    Attributes:
        images_NHWC: uint8 (N, size, size, 3), prepared.
        keys: N keys, in the order of the images.
        size_N2: int64, width and height of each source.
        sha256: N hex digests of the files.
        skipped: (key, reason) of each file that could not be used.
        unseen: mean share of an image's pixels that the crop leaves out, 0 for square images.
        fingerprint: hex digest of the sorted (key, sha256): equal for equal data.
    """

    images_NHWC: NDArray[np.uint8]
    keys: tuple[str, ...]
    size_N2: NDArray[np.int64]
    sha256: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    unseen: float
    fingerprint: str


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it.

    Attributes:
        image_HWC: uint8 (size, size, 3).
        source_size: width and height of the source.
        sha256: hex digest of the file.
    """

    image_HWC: NDArray[np.uint8]
    source_size: tuple[int, int]
    sha256: str


Read = Callable[[Sequence[ImageRef], ImageConfig], Iterable[tuple[int, Prepared | ImageError]]]
"""Reads images: the number of each, in any order, with what it is or why it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The readable test images of a category, with what is known to be wrong with each.

    Attributes:
        images_NHWC: uint8 (N, size, size, 3), prepared.
        size_N2: int64, width and height of each source.
        keys: N keys, in the order of the images.
        defects: N names of their folders; `good` is normal.
        is_anomalous_N: bool.
        mask_NHW: bool, the anomalous pixels in the model's input.
        masked_N: whether the image counts for pixel metrics: it is normal, or has a mask.
        skipped: (key, reason) of each file that could not be used.
        without_mask, empty_masks: keys of anomalous images whose mask is missing or marks nothing.
    """

    __test__: ClassVar[bool] = False

    images_NHWC: NDArray[np.uint8]
    size_N2: NDArray[np.int64]
    keys: tuple[str, ...]
    defects: tuple[str, ...]
    is_anomalous_N: NDArray[np.bool_]
    mask_NHW: NDArray[np.bool_]
    masked_N: NDArray[np.bool_]
    skipped: tuple[tuple[str, str], ...]
    without_mask: tuple[str, ...]
    empty_masks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What stands below the folder of a dataset; archives are not opened.

    Attributes:
        categories: names of folders that hold normal images, sorted.
        misnamed: names of such folders that cannot be a category's.
        without: names of folders that hold no normal image.
    """

    categories: list[str]
    misnamed: list[str]
    without: list[str]


def survey(data_uri: str) -> Survey:
    """Every folder of a dataset, so that none is passed over in silence.

    Raises:
        DataError: no such folder, or no category in it.
    """
    if not is_there(data_uri):
        raise DataError(f"no folder {data_uri}; {_LAYOUT}; check the path")
    paths = [tuple(path.split("/")) for path in outline(data_uri)]
    if any(parts[:-1] == ("train", "good") for parts in paths):
        raise DataError(f"{data_uri} is one category (it has train/good); expected the folder "
                        "that holds the category folders; give its parent")
    found = {parts[0] for parts in paths if _may_be_normal(parts[1:])}
    folders = {parts[0] for parts in paths if len(parts) > 1}
    if exists_dir(data_uri):
        folders |= {name for name in list_dirs(data_uri) if not name.startswith(".")}
    names = {name for name in found if NAME_PATTERN.fullmatch(name)}
    if not names:
        bad = next(iter(sorted(found)), None)
        what = "no category" if bad is None else f"no category with a usable name, only {bad!r},"
        raise DataError(f"{what} in {data_uri}; {_LAYOUT}; give the folder that holds the "
                        "category folders, named with letters, digits, '.', '_' or '-'")
    return Survey(categories=sorted(names), misnamed=sorted(found - names),
                  without=sorted(folders - found))


def categories(data_uri: str) -> list[str]:
    """Names of the folders that hold normal images, sorted.

    Raises:
        DataError: as `survey`.
    """
    return survey(data_uri).categories


def normal_images(data_uri: str, category: str) -> list[ImageRef]:
    """The normal training images of a category, sorted by key.

    Raises:
        DataError: no folder or no image.
    """
    found = category_tree(data_uri, category)
    if not found and not is_there(join(data_uri, category)):
        raise DataError(f"no folder {join(data_uri, category)}; {_LAYOUT}; check the category's "
                        "name")
    for folder in (("train", "good"), ("good",)):
        # Where such a folder is, images elsewhere are no training images.
        inside = [ref for ref in found if _parts(ref)[:len(folder)] == folder]
        if inside:
            return inside
    refs = [ref for ref in found if _may_be_normal(_parts(ref))]
    if not refs:
        raise DataError(f"no image in {join(data_uri, category)}; {_LAYOUT}, file names ending in "
                        f"{' '.join(EXTENSIONS)}")
    return refs


def test_images(data_uri: str, category: str) -> list[TestImage]:
    """The labelled test images of an MVTec AD category, sorted by key.

    Raises:
        DataError: no test image.
    """
    refs = category_tree(data_uri, category)
    masks: dict[tuple[str, ...], ImageRef] = {
        parts[1:]: ref for ref in refs
        if (parts := _parts(ref))[0] == "ground_truth" and len(parts) == 3}
    tests = [_test_image(ref, parts[1], masks) for ref in refs
             if (parts := _parts(ref))[0] == "test" and len(parts) == 3]
    if not tests:
        raise DataError(f"no test image in {join(data_uri, category, 'test')}; expected "
                        "test/good/*.png and test/DEFECT/*.png (MVTec AD)")
    return tests


def read_prepared(refs: Sequence[ImageRef],
                  config: ImageConfig) -> Iterator[tuple[int, Prepared | ImageError]]:
    """A `Read` in this process: one image after the other."""
    for number, found in enumerate(read_images(refs, config)):
        if isinstance(found, ImageError):
            yield number, found
        else:
            image_HWC, digest = found
            yield number, Prepared(prepare(image_HWC, config), _size(image_HWC), digest)


def load_normals(refs: Sequence[ImageRef], config: Config, *,
                 progress: Callable[[int, int], None] | None = None, read: Read = read_prepared,
                 empty: Callable[[tuple[int, ...]], NDArray[np.uint8]] | None = None) -> Loaded:
    """Reads, decodes and prepares training images.

    Args:
        progress: called with (files done, files in all).
        read: does the reading.
        empty: makes the uint8 array of a shape that the images are put in; by default in memory.

    Raises:
        DataError: fewer than `calibration.min_images` could be read, or a larger share than
            `calibration.max_unreadable` could not.
        StorageError: `read` did not tell of every image.
    """
    shape = (len(refs), config.image.size, config.image.size, 3)
    images_NHWC = empty(shape) if empty else np.empty(shape, np.uint8)
    read_as: dict[int, tuple[str, tuple[int, int]]] = {}
    reasons: dict[int, str] = {}
    for done, (number, found) in enumerate(read(refs, config.image), start=1):
        if isinstance(found, ImageError):
            reasons[number] = found.reason
        else:
            images_NHWC[number] = found.image_HWC
            read_as[number] = found.sha256, found.source_size
        if progress:
            progress(done, len(refs))
    if len(read_as) + len(reasons) != len(refs):
        raise StorageError(f"{len(refs) - len(read_as) - len(reasons)} of {len(refs)} images were "
                           "lost on their way; run the command again")
    skipped = tuple((refs[number].key, reasons[number]) for number in sorted(reasons))
    _check_enough(len(read_as), skipped, config)
    kept = sorted(read_as)
    for place, number in enumerate(kept):
        if place != number:
            images_NHWC[place] = images_NHWC[number]
    keys = tuple(refs[number].key for number in kept)
    digests = tuple(read_as[number][0] for number in kept)
    sizes = [read_as[number][1] for number in kept]
    unseen = sum(Geometry.of(*size, config.image).unseen for size in sizes)
    return Loaded(images_NHWC[:len(kept)], keys, np.array(sizes), digests, skipped,
                  unseen / len(kept), data_fingerprint(list(zip(keys, digests, strict=True))))


def load_tests(tests: Sequence[TestImage], config: ImageConfig, *,
               progress: Callable[[int, int], None] | None = None) -> TestSet:
    """Reads, decodes and prepares test images and their masks; masks by nearest neighbour.

    Args:
        progress: called with (files done, files in all).

    Raises:
        DataError: no image can be read, or a mask is damaged or of another aspect ratio.
    """
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    sizes: list[tuple[int, int]] = []
    kept: list[TestImage] = []
    skipped: list[tuple[str, str]] = []
    without, empty = [], []
    found = zip(tests, read_images([test.ref for test in tests], config), strict=True)
    for done, (test, read) in enumerate(found, start=1):
        if progress:
            progress(done, len(tests))
        if isinstance(read, ImageError):
            skipped.append((test.ref.key, read.reason))
            continue
        image_HWC, _ = read
        kept.append(test)
        images.append(prepare(image_HWC, config))
        sizes.append(_size(image_HWC))
        mask_HW = np.zeros((config.size, config.size), bool)
        if test.is_anomalous and test.mask is None:
            without.append(test.ref.key)
        elif test.mask is not None and test.is_anomalous:
            mask_HW, marks = _read_mask(test.mask, sizes[-1], config)
            empty += [] if marks else [test.ref.key]
        masks.append(mask_HW)
    if not kept:
        raise DataError(f"none of the {len(tests)} test images can be read; the first is "
                        f"{tests[0].ref.uri} ({skipped[0][1]})")
    unusable = {*without, *empty}
    keys = tuple(test.ref.key for test in kept)
    return TestSet(
        images_NHWC=np.stack(images), size_N2=np.array(sizes), keys=keys,
        defects=tuple(test.defect for test in kept),
        is_anomalous_N=np.array([test.is_anomalous for test in kept]),
        mask_NHW=np.stack(masks), masked_N=np.array([key not in unusable for key in keys]),
        skipped=tuple(skipped), without_mask=tuple(without), empty_masks=tuple(empty))


def data_fingerprint(keyed: Sequence[tuple[str, str]]) -> str:
    """Hex SHA-256 of (key, sha256) pairs in any order."""
    lines = (f"{digest} {key}\n" for key, digest in sorted(keyed))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _size(image_HWC: NDArray[np.uint8]) -> tuple[int, int]:
    return image_HWC.shape[1], image_HWC.shape[0]


def _read_mask(ref: ImageRef, source_size: tuple[int, int],
               config: ImageConfig) -> tuple[NDArray[np.bool_], bool]:
    """A mask in input pixels, and whether it marks anything at all, seen or not."""
    try:
        mask_HW = read_image(ref, config)[0][..., 0]
        return prepare_mask(mask_HW, source_size, config), bool((mask_HW > 127).any())
    except DataError as error:
        raise DataError(f"{ref.uri}: {error}") from error


def _check_enough(readable: int, skipped: Sequence[tuple[str, str]], config: Config) -> None:
    limits = config.calibration
    total = readable + len(skipped)
    first = ", ".join(f"{key} ({reason})" for key, reason in skipped[:3])
    found = f"{readable} of {total} training images can be read"
    if skipped:
        found += f"; unreadable: {first}{', ...' if len(skipped) > 3 else ''}"
    if readable < max(1, limits.min_images):
        raise DataError(f"{found}; expected at least {limits.min_images}; add normal images")
    if len(skipped) > limits.max_unreadable * total:
        raise DataError(f"{found}; expected at most {limits.max_unreadable:.1%} unreadable; repair "
                        "or remove the files, or raise calibration.max_unreadable")


def _parts(ref: ImageRef) -> tuple[str, ...]:
    return tuple(ref.key.split("/"))


def _may_be_normal(parts: tuple[str, ...]) -> bool:
    """Whether a path below a category may be a normal's: in no folder of test images."""
    return bool(parts) and (len(parts) == 1 or not _HELD_OUT.fullmatch(parts[0]))


def _test_image(ref: ImageRef, defect: str,
                masks: dict[tuple[str, ...], ImageRef]) -> TestImage:
    stem = PurePosixPath(ref.key).stem
    mask = masks.get((defect, f"{stem}_mask.png"))
    return TestImage(ref, defect, defect != "good", mask)
