"""Reads of a walk: the right bytes, small ones past large bodies, large ones past small bodies."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd import storage
from igd.data import hops, stream
from igd.data.hops import HOP_BYTES, Hops

WHOLE = random.Random(0).randbytes(60_000)


class Slow:
    """An object of zeros, a round trip and some bytes a second away."""

    def __init__(self, patch: pytest.MonkeyPatch, round_trip_s: float, byte_s: float = 0) -> None:
        self.calls: list[int] = []
        self._round_trip_s, self._byte_s = round_trip_s, byte_s
        self._lock = threading.Lock()
        patch.setattr(storage, "read_range", self)

    def __call__(self, uri: str, offset: int, length: int, *, version: str) -> bytes:
        with self._lock:
            self.calls.append(length)
        time.sleep(self._round_trip_s + length * self._byte_s)
        return bytes(length)


def passing(bodies: list[int]) -> None:
    """Reads a header before each body."""
    content = Hops("s3://b/a.tar", sum(bodies) + 512 * len(bodies), "v")
    at = 0
    for body in bodies:
        assert len(content.read(at, 512)) == 512
        at += 512 + body


@settings(max_examples=150, deadline=None)
@given(jumps=st.lists(st.tuples(st.integers(-50, 9_000), st.integers(0, 3_000)), max_size=40),
       streams=st.lists(st.booleans(), min_size=1, max_size=9))
def test_every_read_is_right_however_it_is_made(jumps: list[tuple[int, int]],
                                                streams: list[bool]) -> None:
    turns = iter(streams * 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_range", lambda uri, at, length, version: WHOLE[at:at + length])
        patch.setattr(stream, "RANGE_BYTES", 2_000)
        patch.setattr(hops, "RANGE_BYTES", 2_000)
        patch.setattr(hops, "HOP_BYTES", 700)
        patch.setattr(Hops, "prefers_stream", lambda self: next(turns))
        content = Hops("s3://b/a", len(WHOLE), "v")
        at = 0
        for jump, length in jumps:
            at = max(0, at + jump)
            assert content.read(at, length) == WHOLE[at:at + length]
            at += length


def test_small_members_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    object_ = Slow(monkeypatch, 0.005)
    passing([100_000] * 200)
    assert len(object_.calls) < 15 and sum(object_.calls) > 19_000_000


def test_large_bodies_are_hopped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    object_ = Slow(monkeypatch, 0.005)
    passing([64 << 20] * 20)
    assert len(object_.calls) == 20 and sum(object_.calls) <= 20 * HOP_BYTES


def test_the_same_bodies_are_hopped_over_where_round_trips_are_cheap(
        monkeypatch: pytest.MonkeyPatch) -> None:
    near = Slow(monkeypatch, 0.0005)
    passing([2 << 20] * 30)
    assert sum(near.calls) <= 30 * HOP_BYTES
    far = Slow(monkeypatch, 0.05)
    passing([2 << 20] * 30)
    assert len(far.calls) < 25 and sum(far.calls) > 20 << 20


def test_a_large_body_among_small_ones_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    object_ = Slow(monkeypatch, 0.005)
    passing([10_000] * 100 + [1 << 30] + [10_000] * 100)
    assert sum(object_.calls) < 100 << 20


def test_a_stream_that_turns_out_slow_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    object_ = Slow(monkeypatch, 0.01, byte_s=1 / 20e6)
    passing([1 << 20] * 60)
    assert sum(object_.calls) < 40 << 20
