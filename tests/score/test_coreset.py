"""Memory banks: against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from igd.score.coreset import greedy_coreset, nearest_distance, projected


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def slow_greedy(x_BD: torch.Tensor, count: int) -> list[int]:
    x = x_BD.double().numpy()
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmax())]
    while len(chosen) < count:
        gaps = cdist(x, x[chosen]).min(1)
        gaps[chosen] = -1
        chosen.append(int(gaps.argmax()))
    return chosen


@pytest.mark.parametrize(("count", "shift"), [(1, 0.0), (30, 0.0), (300, 0.0), (30, 50.0)])
def test_the_greedy_coreset_is_that_of_a_slow_reference(count: int, shift: float) -> None:
    x_BD = rows(300, 8) + shift
    assert greedy_coreset(x_BD, count).tolist() == slow_greedy(x_BD, count)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_twins_are_taken_last_and_no_row_twice(values: list[int]) -> None:
    x_BD = torch.tensor(values, dtype=torch.float32)[:, None]
    chosen = greedy_coreset(x_BD, len(values)).tolist()
    assert sorted(chosen) == list(range(len(values)))
    distinct = len(set(values))
    assert {values[i] for i in chosen[:distinct]} == set(values)


def test_a_coreset_covers_better_than_a_random_one() -> None:
    crowd, rare = rows(500, 4), rows(5, 4, seed=1) * 0.1 + 20
    x_BD = torch.cat([crowd, rare])
    greedy = nearest_distance(x_BD, x_BD[greedy_coreset(x_BD, 50)]).max()
    drawn = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:50]
    assert greedy < 0.5 * nearest_distance(x_BD, x_BD[drawn]).max()


@pytest.mark.parametrize("count", [1, 255, 257, 600])
def test_the_nearest_distance_is_the_smallest_of_all(count: int) -> None:
    query, bank = rows(count, 6).double(), rows(90, 6, seed=1).double()
    np.testing.assert_allclose(nearest_distance(query, bank), cdist(query, bank).min(1),
                               rtol=1e-12)


def test_a_row_of_the_bank_is_at_distance_zero_exactly() -> None:
    bank = rows(300, 152).double() * 1000
    assert not nearest_distance(bank, bank).any()


def test_the_projection_nearly_keeps_distances_and_is_always_the_same() -> None:
    x_BD = rows(60, 152)
    flat = projected(x_BD)
    assert flat.shape == (60, 64)
    apart = ~np.eye(60, dtype=bool)
    ratio = cdist(flat, flat)[apart] / cdist(x_BD, x_BD)[apart]
    assert abs(ratio.mean() - 1) < 0.05 and ratio.std() < 0.15
    assert torch.equal(flat, projected(x_BD))
