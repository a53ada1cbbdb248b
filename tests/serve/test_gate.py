"""Places: never more than there are, all given back, none waited for."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.serve.gate import Gate, OverloadedError


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
