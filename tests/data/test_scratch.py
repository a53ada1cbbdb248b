"""Scratch files: zeros that nothing is left of, and a disk that is too small is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from igd.data.scratch import check_space, mapped
from igd.errors import StorageError


def test_a_scratch_array_holds_zeros_then_what_is_written_and_has_no_name(tmp_path: Path) -> None:
    array = mapped(str(tmp_path), (3, 5), np.float32)
    assert not array.any() and array.shape == (3, 5)
    array[1] = 7
    assert array.sum() == 35
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_with_folder_found_and_needed(tmp_path: Path) -> None:
    check_space(str(tmp_path), 1)
    with pytest.raises(StorageError, match=rf"{re.escape(str(tmp_path))} has \d+\.\d\d GiB free; "
                                           r"expected 1048576\.00 GiB"):
        check_space(str(tmp_path), 1 << 50)
    with pytest.raises(StorageError, match="cannot take"):  # taken at once, not page by page
        mapped(str(tmp_path), (1 << 50,), np.uint8)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere cannot be used"):
        check_space(str(tmp_path / "nowhere"), 1)
