"""The wire format of tensors, there and back, and against what is no tensor."""

from __future__ import annotations

import base64
import gc
import json
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from igd.serve.faults import RequestError
from igd.serve.tensors import (
    files_from_binary,
    files_from_json,
    pixels_from_binary,
    pixels_from_json,
    read_json,
    split,
    to_binary,
    to_json,
)

PIXELS = array_shapes(min_dims=1, max_dims=4, max_side=5).flatmap(
    lambda shape: arrays(np.uint8, shape))
FLOATS = st.lists(st.floats(allow_nan=False), min_size=1)


@given(st.lists(st.binary(max_size=40)))
def test_files_come_back_from_what_tritons_client_writes(files: list[bytes]) -> None:
    utils = pytest.importorskip("tritonclient.utils", reason="needs tritonclient[http]")
    written = utils.serialize_byte_tensor(np.array([*files, None], object)[:-1])
    binary = written.item() if files else b""
    assert files_from_binary(memoryview(binary), len(files)) == files
    in_json = json.loads(json.dumps([base64.b64encode(file).decode() for file in files]))
    assert files_from_json(in_json, len(files)) == files


@given(st.lists(st.text(max_size=40)))
def test_texts_come_back(texts: list[str]) -> None:
    written = memoryview(to_binary("BYTES", texts))
    assert [file.decode() for file in files_from_binary(written, len(texts))] == texts
    assert json.loads(json.dumps(to_json("BYTES", texts))) == texts


@given(PIXELS)
def test_pixels_come_back(pixels: np.ndarray) -> None:
    written = memoryview(to_binary("UINT8", list(pixels)))
    for back in (pixels_from_binary(written, pixels.shape),
                 pixels_from_json(to_json("UINT8", list(pixels)), pixels.shape),
                 pixels_from_json(pixels.tolist(), pixels.shape)):
        assert back.dtype == np.uint8 and np.array_equal(back, pixels)


@given(FLOATS)
def test_numbers_are_written_to_the_bit(values: list[float]) -> None:
    array = np.array(values)
    assert to_binary("FP64", values) == array.astype("<f8").tobytes()
    with np.errstate(over="ignore"):
        single = array.astype("<f4")
    assert to_binary("FP32", list(single)) == single.tobytes()
    assert np.array(to_json("FP32", list(single)), "<f4").tobytes() == single.tobytes()
    assert np.array(to_json("FP64", values), "<f8").tobytes() == array.tobytes()


@given(st.binary(max_size=40), st.integers(1, 4))
def test_bytes_are_files_or_refused(data: bytes, count: int) -> None:
    try:
        files = files_from_binary(memoryview(data), count)
    except RequestError as error:
        assert error.status == 400
    else:
        assert b"".join(len(f).to_bytes(4, "little") + f for f in files) == data


@given(st.lists(st.integers(-1, 256) | st.floats() | st.text(max_size=3)
                | st.lists(st.integers(0, 9), max_size=3), max_size=12),
       st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_values_are_pixels_or_refused(data: list[Any], shape: list[int]) -> None:
    try:
        pixels = pixels_from_json(data, shape)
    except RequestError as error:
        assert error.status == 400
    else:
        assert pixels.size == prod(shape) and pixels.tolist() == np.reshape(data, shape).tolist()


@given(st.binary(max_size=20), st.none() | st.integers(-2, 25).map(str) | st.text(max_size=3))
def test_a_body_is_split_where_the_header_says_or_refused(body: bytes, length: str | None) -> None:
    try:
        text, behind = split(memoryview(body), length)
    except RequestError as error:
        assert error.status == 400
    else:
        assert bytes(text) + bytes(behind) == body
        assert len(text) == (len(body) if length is None else int(length)) and (
            length is None or len(text) > 0)


@pytest.mark.parametrize(("text", "value"), [
    (b'{"a": [1, 2.5, "\xc3\xa9", null, true]}', {"a": [1, 2.5, "é", None, True]}), (b"7", 7)])
def test_json_is_read(text: bytes, value: Any) -> None:
    assert read_json(text) == value


def test_pythons_garbage_is_left_alone_while_a_tree_of_lists_is_read() -> None:
    began: list[str] = []
    text = b"[" + b",".join([b"[]"] * 100_000) + b"]"

    def note(phase: str, info: dict[str, int]) -> None:
        began.append(phase)

    gc.callbacks.append(note)
    try:
        tree = read_json(text)
    finally:
        gc.callbacks.remove(note)
    assert len(tree) == 100_000 and len(began) < 10 and gc.isenabled()
