"""Scratch files: zeros that nothing is left of, and a disk that is too small is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from igd.data.scratch import check_space, default_folder, is_in_memory, mapped
from igd.errors import StorageError


def test_a_scratch_array_holds_zeros_then_what_is_written_and_has_no_name(scratch: Path) -> None:
    array = mapped(str(scratch), (3, 5), np.float32)
    assert not array.any() and array.shape == (3, 5)
    array[1] = 7
    assert array.sum() == 35
    assert list(scratch.iterdir()) == []


def test_too_little_space_is_said_with_folder_found_and_needed(scratch: Path) -> None:
    check_space(str(scratch), 1)
    with pytest.raises(StorageError, match=rf"{re.escape(str(scratch))} has \d+\.\d\d GiB free; "
                                           r"expected 1048576\.00 GiB"):
        check_space(str(scratch), 1 << 50)
    with pytest.raises(StorageError, match="cannot take"):  # taken at once, not page by page
        mapped(str(scratch), (1 << 50,), np.uint8)


def test_a_folder_that_is_not_there_is_named(scratch: Path) -> None:
    with pytest.raises(StorageError, match="nowhere cannot be used"):
        check_space(str(scratch / "nowhere"), 1)


@pytest.mark.skipif(not is_in_memory("/dev/shm"), reason="no tmpfs here")
def test_a_folder_in_memory_is_no_place_for_what_is_beyond_memory(
        monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"/dev/shm is in memory \(tmpfs\)"):
        check_space("/dev/shm", 1)
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    assert default_folder() == "/var/tmp"
