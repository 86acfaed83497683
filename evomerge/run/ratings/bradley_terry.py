"""Strengths of candidates from comparisons in pairs, after Bradley and Terry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPREAD = 2.0
"""Standard deviation of a strength around those that it is compared with, before anything was compared: keeps one that
won or lost every comparison finite."""

_STEPS = 100
_ENOUGH = 1e-12


def chances(strength: float, others: Floats) -> Floats:
    """How likely a candidate is preferred to each of `others`: ``1 / (1 + exp(other - strength))``.

    Bradley and Terry 1952 (Biometrika 39, 324), with strengths as logarithms.
    """
    found: Floats = 1.0 / (1.0 + np.exp(np.clip(others - strength, -700.0, 700.0)))
    return found


def strength(preferred: Sequence[float], others: Sequence[float], raters: int = 1) -> float:
    """The strength of a candidate whose opponents' strengths are known: the most probable one.

    Its logarithmic posterior ``raters sum_i (y_i log p_i + (1 - y_i) log(1 - p_i)) - (s - m)^2 / (2 SPREAD^2)`` has one
    maximum, which Newton's steps find; ``m`` is the mean strength of the opponents. A tie is half a preference
    (Caron and Doucet 2012, arXiv 1011.1761, has priors and ties).

    Args:
        preferred: by comparison the share of raters who prefer the candidate, from 0 to 1.
        others: by comparison the opponent's strength.
        raters: of each comparison.

    Returns:
        0 where nothing was compared.
    """
    if not len(others):
        return 0.0
    wins, strengths = np.asarray(preferred, dtype=np.float64), np.asarray(others, dtype=np.float64)
    middle = float(strengths.mean())
    low, high = strengths.min() - 100.0 * SPREAD, strengths.max() + 100.0 * SPREAD  # the maximum is between them
    found = middle
    for _ in range(_STEPS):
        slope = float(raters * (wins - chances(found, strengths)).sum() - (found - middle) / SPREAD**2)
        low, high = (found, high) if slope > 0 else (low, found)
        step = found + slope / curvature(found, strengths, raters)
        step = step if low < step < high else (low + high) / 2
        if abs(step - found) <= _ENOUGH * (1.0 + abs(found)):
            return step
        found = step
    return found


def curvature(at: float, others: Floats, raters: int) -> float:
    """How sharp the maximum of `strength` is: one over the variance of the strength."""
    shares = chances(at, others)
    return float(raters * (shares * (1.0 - shares)).sum() + 1.0 / SPREAD**2)


def by_comparison(preferred: Sequence[float], others: Sequence[float], raters: int = 1) -> Floats:
    """What every comparison makes of the strength: `strength` plus the influence of that comparison.

    The mean of the influences is that of the comparisons' surprises, not 0; whoever takes means subtracts it. Their
    spread is that of the strength over other comparisons, so that paired tests of two candidates may use them.

    Args:
        preferred, others, raters: as of `strength`.

    Returns:
        Shape ``(comparisons,)``.
    """
    wins, strengths = np.asarray(preferred, dtype=np.float64), np.asarray(others, dtype=np.float64)
    own = strength(preferred, others, raters)
    surprise = wins - chances(own, strengths)
    found: Floats = own + raters * len(wins) * surprise / curvature(own, strengths, raters)
    return found
