import pytest

from igd.train.schedule import poly_lr


def test_poly_decay_starts_at_lr_and_falls_to_zero():
    values = [poly_lr(step, 10, lr=2.0, power=0.9) for step in range(11)]
    assert values[0] == 2.0
    assert values[5] == pytest.approx(2.0 * 0.5 ** 0.9)
    assert values[10] == 0.0
    assert values == sorted(values, reverse=True)
