"""What is done to pycma's state from outside: correlations at the start, means that stay, scores for its stopping."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def correlate(strategy: Any, covariance: Array) -> None:
    """Give a strategy that has not begun the correlations of a covariance; its standard deviations are set.

    Args:
        strategy: a `cma.CMAEvolutionStrategy` of a full covariance.
        covariance: of its first coordinates, shape ``(numbers, numbers)``.
    """
    deviations, numbers = np.sqrt(np.diag(covariance)), len(covariance)
    sampler = strategy.sm
    sampler.C = np.eye(sampler.dimension)
    sampler.C[:numbers, :numbers] = covariance / np.outer(deviations, deviations)
    sampler.update_now(-1)
    strategy._updateBDfromSM()


def stay(strategy: Any, before: Array, acts: NDArray[np.bool_]) -> None:
    """Take back from the mean what points moved it by in coordinates in which they do not act.

    Args:
        strategy: a `cma.CMAEvolutionStrategy` that was just told a generation.
        before: its mean before that, shape ``(dimensions,)``.
        acts: by rank, the first coordinates of each point, shape ``(points, numbers)``.
    """
    weights, numbers = np.asarray(strategy.sp.weights.positive_weights), acts.shape[1]
    moved = np.asarray(strategy.pop_sorted)[: len(weights), :numbers] - before[:numbers]
    mean = np.array(strategy.mean)
    mean[:numbers] -= strategy.sp.cmean * weights @ (moved * ~acts[: len(weights)])
    strategy.mean = mean


def losses_of(gains: Array, ranks: NDArray[np.int64]) -> Array:
    """Scores to minimise that have these ranks, each a little above the one before where they are equal or missing.

    Args:
        gains: of a generation, NaN for failures, which rank last; at least one is none.
        ranks: the place of each, 0 for the best.
    """
    losses, last = np.empty(len(gains)), -np.inf
    for place in np.argsort(ranks):
        loss = -gains[place]
        last = loss if loss > last else float(np.nextafter(last, np.inf))
        losses[place] = last
    return losses
