"""Splits of groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igd.errors import DataError
from igd.model.groups import alone, folds, hold_out

GROUPS = st.lists(st.integers(0, 9), min_size=2, max_size=60).map(
    lambda raw: torch.unique(torch.tensor(raw), return_inverse=True)[1]).filter(
        lambda group_N: bool(group_N.max() > 0))


@given(GROUPS, st.integers(1, 40), st.integers(2, 12))
def test_no_group_is_ever_parted(group_N: torch.Tensor, wanted: int, most: int) -> None:
    for side_N in (hold_out(group_N, wanted).long(), folds(group_N, most)):
        assert 2 <= len(side_N.unique()) <= most
        for group in group_N.unique():
            assert len(side_N[group_N == group].unique()) == 1


def test_groups_go_in_the_order_of_their_numbers_up_to_the_share_wanted() -> None:
    group_N = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    assert hold_out(group_N, 3).tolist() == [True] * 3 + [False] * 6
    # two more than wanted is as far off as two less, and the fourth image fits
    assert hold_out(group_N, 4).tolist() == [True] * 3 + [False] * 3 + [True] + [False] * 2
    assert hold_out(torch.tensor([0] * 5 + [1] * 9), 1).tolist() == [True] * 5 + [False] * 9


def test_folds_are_filled_evenly() -> None:
    group_N = torch.tensor([0, 0, 0, 1, 2, 3])
    assert folds(group_N, 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert folds(alone(26, 0), 4).bincount().tolist() == [7, 7, 6, 6]


def test_one_group_cannot_be_split() -> None:
    for split in (folds, hold_out):
        with pytest.raises(DataError, match="all 5 normal images are near-duplicates"):
            split(torch.zeros(5, dtype=torch.long), 3)
