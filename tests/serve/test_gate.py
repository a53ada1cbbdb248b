"""Places: never more than there are, all given back, none waited for."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.serve.gate import Admission, Gate, OverloadedError


def test_the_last_place_is_given_and_the_next_request_refused() -> None:
    gate = Gate(2)
    with gate.enter(), gate.enter():
        assert gate.taken == 2
        with pytest.raises(OverloadedError):
            gate.check()
        with pytest.raises(OverloadedError), gate.enter():
            raise AssertionError
    assert (gate.taken, gate.refused) == (0, 2)
    gate.check()


def test_a_place_is_given_back_by_a_request_that_fails() -> None:
    gate = Gate(1)
    with pytest.raises(ValueError), gate.enter():
        raise ValueError
    assert gate.taken == 0


@given(st.integers(1, 20), st.lists(st.integers(1, 12), max_size=12))
def test_who_wants_several_gets_what_is_free(places: int, wants: list[int]) -> None:
    gate = Gate(places)
    with ExitStack() as stack:
        left = places
        for wanted in wants:
            if left == 0:
                with pytest.raises(OverloadedError):
                    stack.enter_context(gate.enter(wanted))
                continue
            got = stack.enter_context(gate.enter(wanted))
            assert got == min(wanted, left)
            left -= got
            assert gate.taken == places - left
    assert gate.taken == 0


def offered(admission: Admission, each_s: float, seconds: float, score_s: float,
            began: float = 0.0) -> list[int]:
    """How many others each admitted image found, of images that come at equal distances to one
    scorer."""
    found, ends = [], list[float]()
    for number in range(int(seconds / each_s)):
        now = began + number * each_s
        ends = [end for end in ends if end > now]
        if admission.admits(len(ends), now):
            found.append(len(ends))
            ends.append(max(now, max(ends, default=now)) + score_s)
    return found


def test_under_an_overload_that_lasts_nobody_waits() -> None:
    admission = Admission(at_once=1, places=2)
    found = offered(admission, each_s=0.011, seconds=20, score_s=0.1)
    assert 1 in found[:10] and found[20:] == [0] * len(found[20:])
    assert len(found) > 0.9 * 20 / 0.111  # and the scorer has as much to do


@pytest.mark.parametrize("each_s", [0.07, 0.15])
def test_with_less_to_do_images_may_wait(each_s: float) -> None:
    admission = Admission(at_once=1, places=2)
    offered(admission, each_s=0.01, seconds=20, score_s=0.1)
    later = offered(admission, each_s=each_s, seconds=20, score_s=0.1, began=25)
    assert (1 in later) == (each_s < 0.1)
    assert admission.admits(1, 60.0)


def test_a_burst_is_no_overload() -> None:
    admission = Admission(at_once=1, places=2)
    assert [admission.admits(taken, 0.0) for taken in (0, 1, 2, 2, 2, 2)] == [
        True, True, False, False, False, False]
    assert admission.admits(1, 0.1)
