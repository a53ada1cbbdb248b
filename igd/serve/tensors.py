"""Tensors as the Open Inference Protocol has them: within JSON, or as bytes behind it.

With the binary data extension, a body is as many bytes of JSON as the header
`Inference-Header-Content-Length` says and then the bytes of the tensors, in order: numbers
little-endian, each element of a BYTES tensor behind its length in four bytes.

What comes in is not believed: every function that reads raises `RequestError` (400) for anything
that is not what it should be, and allocates no more than the body is long.
"""

from __future__ import annotations

import base64
import gc
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from igd.serve.faults import RequestError

HEADER_LENGTH = "inference-header-content-length"
JSON_VALUES = 1 << 20
"""Values in JSON that is read. They take up to 64 bytes each, and Python's parser lets no other
thread run meanwhile: so many take it less than 0.1 s. Base64 of any length is one value."""

Datatype = Literal["BYTES", "UINT8", "FP32", "FP64"]
_DTYPES = {"UINT8": "u1", "FP32": "<f4", "FP64": "<f8"}
_LENGTH = struct.Struct("<I")


def malformed(message: str) -> RequestError:
    """The refusal of a request that is not what the protocol says."""
    return RequestError(400, "invalid_request", message)


def split(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON of a body, and the bytes behind it.

    Args:
        header_length: of the JSON, as the header has it; without the header it is all of the body.
    """
    if header_length is None:
        return body, body[len(body):]
    if not re.fullmatch(r"[0-9]{1,18}", header_length) or not 0 < int(header_length) <= len(body):
        raise malformed(f"{HEADER_LENGTH}: expected the length of the JSON in bytes, at most the "
                        f"{len(body)} of the body")
    return body[:int(header_length)], body[int(header_length):]


def read_json(text: bytes) -> Any:
    """Parses JSON of at most `JSON_VALUES` values, without NaN and Infinity."""
    # Each value but the first has a comma, a colon or a bracket to itself.
    if sum(text.count(mark) for mark in (b",", b":", b"[", b"{")) > JSON_VALUES:
        raise malformed(f"the JSON has more than {JSON_VALUES} values; send large tensors as "
                        "binary data")
    try:
        with _no_collection():
            return json.loads(text.decode(), parse_constant=_no_number)
    except RecursionError:
        raise malformed("the JSON is nested too deeply") from None
    except ValueError:
        raise malformed("expected JSON in UTF-8, without NaN and Infinity") from None


def files_from_binary(data: memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor."""
    files, at = [], 0
    for index in range(count):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if at > len(data):
            raise malformed(f"image: the binary data ends within element {index} of {count}")
        files.append(bytes(data[start:at]))
    if at < len(data):
        raise malformed(f"image: the binary data goes on after element {count - 1}")
    return files


def files_from_json(data: Sequence[Any], count: int) -> list[bytes]:
    """The elements of a BYTES tensor, each in base64."""
    if len(data) != count:
        raise malformed(f"image: {len(data)} elements; expected {count}, as its shape says")
    return [_from_base64(text, index) for index, text in enumerate(data)]


def pixels_from_binary(data: memoryview, shape: Sequence[int]) -> NDArray[np.uint8]:
    """A UINT8 tensor, without a copy."""
    if len(data) != prod(shape):
        raise malformed(f"image: {len(data)} bytes of binary data do not make the shape "
                        f"{list(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def pixels_from_json(data: Sequence[Any], shape: Sequence[int]) -> NDArray[np.uint8]:
    """A UINT8 tensor, flat or nested."""
    nested = bool(data) and isinstance(data[0], list)
    try:
        flat = _flattened(data, shape if nested else [prod(shape)])
    except (TypeError, ValueError):
        raise malformed("image: expected whole numbers from 0 to 255, flat or nested, as many as "
                        f"the shape {list(shape)} says") from None
    return np.frombuffer(flat, np.uint8).reshape(shape)


def to_binary(datatype: Datatype, values: Sequence[Any]) -> bytes:
    """The bytes of a tensor; elements of a BYTES tensor are given as text."""
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element
                        for element in (text.encode() for text in values))
    return np.asarray(values, _DTYPES[datatype]).tobytes()


def to_json(datatype: Datatype, values: Sequence[Any]) -> list[Any]:
    """The `data` of a tensor, flat; numbers as the shortest text that reads back to the bits."""
    if datatype == "BYTES":
        return list(values)
    flat: list[Any] = np.asarray(values, _DTYPES[datatype]).ravel().tolist()
    return flat


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage, over and over, while a tree of objects grows: among
    the objects of torch and Ray, half a million lists take it seconds. For JSON's parser, which
    leaves no garbage and lets no other thread run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _from_base64(text: Any, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise malformed(f"image: element {index} is not an image file in base64") from None


def _flattened(data: Any, shape: Sequence[int]) -> bytes:
    if not isinstance(data, list) or len(data) != shape[0]:
        raise ValueError
    # Not numpy: it would take "12" and 1.5 for numbers of 8 bits.
    return bytes(data) if len(shape) == 1 else b"".join(
        _flattened(row, shape[1:]) for row in data)
