"""A wait has an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from igd.errors import ModelError, StorageError
from igd.pipelines import stall
from igd.pipelines.stall import unless_stalled


def test_items_come_through_in_order_and_so_does_their_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ModelError("changed")

    got: list[int] = []
    with pytest.raises(ModelError, match="changed"):
        for item in unless_stalled(items(), 60, "shard"):
            got.append(item)
    assert got == list(range(5))
    assert list(unless_stalled(iter("ab"), 60, "letter")) == ["a", "b"]


def test_what_hangs_is_given_up_and_so_is_what_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(stall, "START_S", 0.0)
    forever = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        forever.wait()
        yield 2

    waiting = unless_stalled(items(), 0.2, "shard finished")
    assert next(waiting) == 1
    with pytest.raises(StorageError, match=r"no shard finished for 0 s.*run the command again"):
        next(waiting)
    monkeypatch.setattr(stall, "ASK_EVERY_S", 0.01)
    gone = unless_stalled(items(), 60, "shard finished", is_there=lambda: False)
    assert next(gone) == 1
    with pytest.raises(StorageError, match="head of the Ray cluster is gone"):
        next(gone)
    forever.set()
