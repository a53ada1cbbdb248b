"""MNIST, Fashion-MNIST and CIFAR-10 as the one-class protocols want them: 32x32 RGB and a label.

::

    MNIST/train-images-idx3-ubyte[.gz]   train-labels-idx1-ubyte[.gz]   t10k-...   (also .idx3-)
    CIFAR/data_batch_1 ... 5, test_batch      python version, also in cifar-10-batches-py/
    CIFAR/data_batch_1.bin ... test_batch.bin binary version, also in cifar-10-batches-bin/

Legend: N images, H and W 32 pixels, C = 3 RGB channels.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from igd.data.cifar import CIFAR_PIXELS, read_batch
from igd.errors import ConfigError, DataError
from igd.storage import exists_dir, join, read_bytes, stat

__all__ = ["CLASS_NAMES", "Dataset", "LabelledImages", "load"]

Dataset = Literal["mnist", "fashion-mnist", "cifar-10"]

CLASS_NAMES: dict[Dataset, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                      "Sneaker", "Bag", "Ankle boot"),
    "cifar-10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                 "truck"),
}
"""Names by label, 0 to 9."""

SIDE, IDX_SIDE = 32, 28
MAX_IMAGES = 1_000_000
"""More in one idx file is no such dataset; bounds what a header can make us read."""

_AGAIN = "get the file again from the dataset's publisher"
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_LAYOUTS = (("", ""), ("cifar-10-batches-py", ""), ("", ".bin"), ("cifar-10-batches-bin", ".bin"))


@dataclass(frozen=True)
class LabelledImages:
    """A dataset with its own split.

    Attributes:
        train_NHWC, test_NHWC: uint8 (N, 32, 32, 3), 0 to 255.
        train_label_N, test_label_N: int64, 0 to 9.
        class_names: by label.
    """

    train_NHWC: NDArray[np.uint8]
    train_label_N: NDArray[np.int64]
    test_NHWC: NDArray[np.uint8]
    test_label_N: NDArray[np.int64]
    class_names: tuple[str, ...]


def load(dataset: Dataset, uri: str) -> LabelledImages:
    """Reads a dataset from the folder that holds its files.

    28x28 images get two black pixels on each side, grey ones three equal channels (the paper's
    32x32 input).

    Raises:
        ConfigError: an unknown dataset.
        DataError: a file is missing, damaged, foreign, or not safe to read.
    """
    if dataset not in get_args(Dataset):
        raise ConfigError(f"unknown dataset {dataset!r}; expected one of "
                          f"{', '.join(get_args(Dataset))}")
    if not exists_dir(uri):
        raise DataError(f"no folder {uri}; expected the folder with the files of {dataset}; "
                        "check the path")
    train, test = _cifar(uri) if dataset == "cifar-10" else (
        _idx_pair(uri, "train"), _idx_pair(uri, "t10k"))
    return LabelledImages(*train, *test, CLASS_NAMES[dataset])


_Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _idx_pair(folder: str, part: str) -> _Pair:
    image_uri, label_uri = (_find_idx(folder, f"{part}-{what}") for what in (
        "images-idx3", "labels-idx1"))
    grey_NHW = _read_idx(image_uri, (IDX_SIDE, IDX_SIDE))
    label_N = _labels(_read_idx(label_uri, ()), label_uri)
    if len(grey_NHW) != len(label_N):
        raise DataError(f"{image_uri} has {len(grey_NHW)} images and {label_uri} {len(label_N)} "
                        "labels; expected as many; take both from the same dataset")
    pad = (SIDE - IDX_SIDE) // 2
    image_NHWC = np.zeros((len(grey_NHW), SIDE, SIDE, 3), dtype=np.uint8)
    image_NHWC[:, pad:-pad, pad:-pad] = grey_NHW[..., None]
    return image_NHWC, label_N


def _find_idx(folder: str, name: str) -> str:
    names = [f"{spelling}-ubyte{suffix}" for spelling in (name, name.replace("-idx", ".idx"))
             for suffix in ("", ".gz")]
    for candidate in names:
        if stat(join(folder, candidate)) is not None:
            return join(folder, candidate)
    raise DataError(f"no {names[0]} in {folder}; looked for {', '.join(names)}; put one of them "
                    "there or check the path")


def _read_idx(uri: str, item: tuple[int, ...]) -> NDArray[np.uint8]:
    """The items of an idx file, each of shape `item`; the content tells whether it is gzip."""
    raw = read_bytes(uri)
    packed = raw.startswith(b"\x1f\x8b")  # browsers unpack a .gz and keep its name
    try:
        return _parse_idx(gzip.GzipFile(fileobj=io.BytesIO(raw)) if packed else io.BytesIO(raw),
                          uri, item)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{uri}: damaged gzip ({error}); expected a whole idx file; "
                        f"{_AGAIN}") from None


def _parse_idx(stream: io.BytesIO | gzip.GzipFile, uri: str,
               item: tuple[int, ...]) -> NDArray[np.uint8]:
    ndim = 1 + len(item)
    header_bytes = 4 + 4 * ndim
    header = stream.read(header_bytes)
    magic = bytes((0, 0, 8, ndim))  # 8: unsigned bytes
    if len(header) >= 4 and header[:4] != magic:
        raise DataError(f"{uri}: found magic {header[:4].hex()}, expected {magic.hex()} (idx, "
                        f"unsigned bytes, {ndim} dimensions); {_AGAIN}")
    if len(header) < header_bytes:
        raise DataError(f"{uri}: truncated: found {len(header)} bytes, expected a header of "
                        f"{header_bytes}; {_AGAIN}")
    count, *shape = (int(side) for side in np.frombuffer(header, ">u4", offset=4))
    if tuple(shape) != item or not 1 <= count <= MAX_IMAGES:
        raise DataError(f"{uri}: found items of shape {tuple(shape)}, {count} of them, expected "
                        f"{item}, 1 to {MAX_IMAGES}; {_AGAIN}")
    expected = count * int(np.prod(item))
    body = stream.read(expected + 1)  # never more than declared, however well it was packed
    if len(body) < expected:
        raise DataError(f"{uri}: truncated: found {header_bytes + len(body)} bytes, expected "
                        f"{header_bytes + expected} for {count} items; {_AGAIN}")
    if len(body) > expected:
        raise DataError(f"{uri}: found trailing bytes, expected {header_bytes + expected} bytes "
                        f"for {count} items; {_AGAIN}")
    return np.frombuffer(body, np.uint8).reshape(count, *item)


def _labels(values: Sequence[int] | NDArray[np.uint8], uri: str) -> NDArray[np.int64]:
    label_N = np.array(values, dtype=np.int64)
    wrong = np.flatnonzero((label_N < 0) | (label_N > 9))
    if len(wrong):
        raise DataError(f"{uri}: found label {label_N[wrong[0]]} at position {wrong[0]}, expected "
                        f"0 to 9; {_AGAIN}")
    return label_N


def _cifar(folder: str) -> tuple[_Pair, _Pair]:
    uris = _find_batches(folder)
    read = _read_binary if uris[0].endswith(".bin") else _read_pickle
    batches = [read(uri) for uri in uris]
    images, labels = zip(*batches[:-1], strict=True)
    return (np.concatenate(images), np.concatenate(labels)), batches[-1]


def _find_batches(folder: str) -> list[str]:
    for subfolder, suffix in _LAYOUTS:
        where = join(folder, subfolder) if subfolder else folder
        uris = [join(where, f"{name}{suffix}") for name in _BATCHES]
        missing = [uri for uri in uris if stat(uri) is None]
        if not missing:
            return uris
        if len(missing) < len(uris):
            raise DataError(f"no {', '.join(missing)}; looked for the six batches "
                            f"{', '.join(name + suffix for name in _BATCHES)}; add what is missing")
    raise DataError(f"no CIFAR-10 batch in {folder}; looked for {', '.join(_BATCHES)}, plain and "
                    "with .bin, there and in "
                    f"{', '.join(sub for sub, _ in _LAYOUTS if sub)}; check the path")


def _read_binary(uri: str) -> _Pair:
    raw, record = read_bytes(uri), 1 + CIFAR_PIXELS
    if not raw or len(raw) % record:
        raise DataError(f"{uri}: truncated: found {len(raw)} bytes, expected a multiple of "
                        f"{record} (a label and 3x32x32 pixels); {_AGAIN}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _from_planes(rows[:, 1:]), _labels(rows[:, 0], uri)


def _read_pickle(uri: str) -> _Pair:
    try:
        pixels, labels = read_batch(read_bytes(uri))
    except (ValueError, LookupError) as error:
        what = str(error)
        if isinstance(error, LookupError):
            what = (f"no entry {what}" if isinstance(error, KeyError)
                    else "an opcode that lacks its operands")
        raise DataError(f"{uri}: refused, not a CIFAR-10 batch: found {what:.120}; expected a "
                        f"pickle of 'data' (uint8 array, N x {CIFAR_PIXELS}), 'labels' (N ints) "
                        f"and plain text; {_AGAIN}") from None
    return _from_planes(pixels), _labels(labels, uri)


def _from_planes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 3072), one colour plane after the other, to NHWC."""
    planes_NCHW = pixels.reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes_NCHW.transpose(0, 2, 3, 1))
