"""Coefficients of linear combinations that sum to one: what LCSC (arXiv 2404.02241) searches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_HALVINGS = 200  # of an interval, until nothing changes any more


def summing_to_one(free: Sequence[float] | Array, cap: float) -> Array:
    """All coefficients from those of all but the first: ``theta_1 + sum_i alpha_i (theta_i - theta_1)``.

    The first is what is missing to one. Should that be beyond the cap, all are moved to the nearest coefficients that
    sum to one and keep to it: so that none is, the first like the others.

    Args:
        free: those of checkpoints 2 to n, shape ``(n - 1,)``, in ``[-cap, cap]``.
        cap: what no magnitude exceeds; at least 1.

    Returns:
        Float64 of shape ``(n,)``.

    >>> summing_to_one([0.5, 1.0], cap=2.0).tolist()
    [-0.5, 0.5, 1.0]
    >>> summing_to_one([2.0, 2.0], cap=2.0).round(9).tolist()
    [-2.0, 1.5, 1.5]
    """
    values = np.array([0.0, *free], dtype=np.float64)
    values[0] = 1.0 - math.fsum(values[1:])
    if abs(values[0]) <= cap:
        return values
    # The projection on a box and a plane: all are moved by one number, and clipped (bisection finds it).
    low, high = -cap - values.max(), cap - values.min()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if np.clip(values + middle, -cap, cap).sum() < 1 else (low, middle)
    moved: Array = np.clip(values + high, -cap, cap)
    inner = int(np.argmin(np.abs(moved)))  # takes what rounding has left
    moved[inner] += 1.0 - math.fsum(moved)
    return moved


def moving_average(count: int, rate: float) -> Array:
    """Coefficients of an exponential moving average: ``r^(T-t)`` over their sum, checkpoint T the last.

    A rate of 0 is the last checkpoint, of 1 the uniform average: the method ``ema`` with ``unbiased``.

    Args:
        count: of checkpoints.
        rate: 0 to 1.

    Returns:
        Float64 of shape ``(count,)``, which sum to one.

    >>> moving_average(3, 0.5).round(4).tolist()
    [0.1429, 0.2857, 0.5714]
    """
    shares: Array = np.power(float(rate), np.arange(count - 1, -1, -1, dtype=np.float64))
    parts: Array = shares / shares.sum()
    return parts
