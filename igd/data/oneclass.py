"""MNIST, Fashion-MNIST and CIFAR-10 as the one-class protocols want them: 32x32 RGB and a label.

::

    MNIST/train-images-idx3-ubyte[.gz]   train-labels-idx1-ubyte[.gz]   t10k-...   (also .idx3-)
    CIFAR/data_batch_1 ... 5, test_batch      python version, also in cifar-10-batches-py/
    CIFAR/data_batch_1.bin ... test_batch.bin binary version, also in cifar-10-batches-bin/

A pickle is a program. CIFAR-10's are never unpickled: an interpreter of the few opcodes that
such a file needs reads them, and the names in it (`numpy dtype`) are compared, never imported.

Legend: N images, H and W 32 pixels, C = 3 RGB channels.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

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
CIFAR_PIXELS = 3 * SIDE * SIDE
MAX_IMAGES = 1_000_000
"""More in one idx file is no such dataset; bounds what a header can make us read."""
MAX_OPCODES = 1_000_000
"""A real batch has some 31,000."""

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
        pixels, labels = _batch(_Machine().run(read_bytes(uri)))
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


def _batch(batch: object) -> tuple[NDArray[np.uint8], list[int]]:
    if not isinstance(batch, dict):
        raise ValueError(f"a {type(batch).__name__}, not a dict")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, _Array) or data.pixels is None:
        raise ValueError("'data' that is no array")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("'labels' that is no list of ints")
    rows, columns = data.pixels.shape
    if columns != CIFAR_PIXELS or not rows == len(labels) > 0:
        raise ValueError(f"'data' of {rows} x {columns} and {len(labels)} labels")
    return data.pixels, labels


@dataclass(frozen=True)
class _Symbol:
    """A name in a pickle, "module name": compared, never looked up."""

    name: str


class _UInt8:
    """Stands for the dtype; the only one a batch needs."""


@dataclass
class _Array:
    """An array that BUILD fills."""

    pixels: NDArray[np.uint8] | None = None


_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_SYMBOLS = {*_RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    """The pickle opcodes of dicts, lists, tuples, ints, text and arrays of uint8; no others.

    ValueError, IndexError or KeyError on anything else. No value is called, hashed, compared or
    printed whole: a few opcodes can nest one that unfolds without end.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks that MARKs put aside
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> object:
        end = 0
        for count, (opcode, arg, position) in enumerate(pickletools.genops(data)):
            if count == MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            self._step(opcode.name, arg)
            end = (position or 0) + 1
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes after its end")
        return self.stack.pop()

    def _step(self, name: str, arg: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                return
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
                return
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
                return
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
                return
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._marked()
                _extend(self.stack[-1], items)
                return
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._marked()
                _update(self.stack[-1], items)
                return
            case "BUILD":
                state, = self._pop(1)
                _build(self.stack[-1], state)
                return
        value = self._value(name, arg)  # first, for it may put another stack in place
        self.stack.append(value)

    def _value(self, name: str, arg: Any) -> object:
        """What an opcode pushes."""
        match name:
            case ("BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE"
                  | "BINBYTES" | "SHORT_BINBYTES"):
                return arg
            case "BINSTRING" | "SHORT_BINSTRING":  # Python 2's bytes; pickletools decodes them
                return arg.encode("latin-1")
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return _CONSTANTS[name]
            case "EMPTY_DICT":
                return {}
            case "EMPTY_LIST":
                return []
            case "EMPTY_TUPLE":
                return ()
            case "TUPLE":
                return tuple(self._marked())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self._pop(int(name[-1])))
            case "BINGET" | "LONG_BINGET":
                return self.memo[arg]
            case "GLOBAL":
                return _symbol(arg)
            case "STACK_GLOBAL":
                return _symbol(" ".join(map(_text, self._pop(2))))
            case "REDUCE":
                return _reduce(*self._pop(2))
        raise ValueError(f"the opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _marked(self) -> list[Any]:
        """What was pushed since the last MARK."""
        items, self.stack = self.stack, self.below.pop()
        return items


def _extend(target: object, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError(f"items appended to a {type(target).__name__}")
    target.extend(items)


def _update(target: object, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError(f"items set in a {type(target).__name__}")
    target.update(zip(map(_text, items[::2]), items[1::2], strict=True))


def _text(value: object) -> str:
    """A dict's key or a part of a name, which Python 2 wrote as bytes."""
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"a {type(value).__name__} where text belongs")
    return value if isinstance(value, str) else value.decode("latin-1")


def _symbol(name: str) -> _Symbol:
    if name not in _SYMBOLS:
        raise ValueError(f"the name {name!r:.80}")
    return _Symbol(name)


def _reduce(function: object, arguments: object) -> object:
    match function, arguments:
        case _Symbol("_codecs encode"), (str(text), "latin1"):  # bytes in Python 3's protocol 2
            return text.encode("latin-1")
        case _Symbol("numpy dtype"), ("u1" | b"u1", *_):
            return _UInt8()
        case _Symbol("numpy dtype"), (str() | bytes() as code, *_):
            raise ValueError(f"an array of dtype {code!r:.20}")
        case _Symbol(name), (_Symbol("numpy ndarray"), *_) if name in _RECONSTRUCT:
            return _Array()
    raise ValueError("a call that builds no array")


def _build(target: object, state: object) -> None:
    match target, state:
        case _UInt8(), _:
            return  # byte order and alignment, which bytes have not
        case _Array(), (1, (int(rows), int(columns)), _UInt8(), fortran, bytes(raw)) if (
                min(rows, columns) > 0 and rows * columns == len(raw)):
            target.pixels = np.frombuffer(raw, np.uint8).reshape(
                rows, columns, order="F" if fortran else "C")
        case _:
            raise ValueError("an array that is not rows x columns of whole bytes")
