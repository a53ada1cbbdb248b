"""A batch of CIFAR-10's python version, read without unpickling.

A pickle is a program. An interpreter of the few opcodes that such a file needs reads it, and the
names in it (`numpy dtype`) are compared, never imported.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CIFAR_PIXELS = 3 * 32 * 32
MAX_OPCODES = 1_000_000
"""A real batch has some 31,000."""


def read_batch(data: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """The pixels (N, 3072), one colour plane after the other, and the labels of a batch.

    Raises:
        ValueError, LookupError: anything but such a batch; says what was found.
    """
    batch = _Machine().run(data)
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
