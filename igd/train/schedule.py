"""Learning rate."""

from __future__ import annotations


def poly_lr(step: int, steps: int, *, lr: float, power: float) -> float:
    """Polynomial decay: `lr` at step 0, towards 0 after the last of `steps`."""
    return float(lr * (1 - step / steps) ** power)
