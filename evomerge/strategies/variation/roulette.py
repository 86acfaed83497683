"""Chances by scores, and who of a population stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 1e-12


def chances(gains: Array) -> Array:
    """Chances in proportion to gains, shape ``(members,)``, that sum to 1.

    Where all gains are above 0 they are what is divided by their sum. Otherwise, for losses and likelihoods, it is the
    distance from the worst, plus the mean distance of neighbours in their order; of equals all chances are alike. None
    is less than a millionth of a millionth of the largest.
    """
    if float(gains.min()) <= 0:
        with np.errstate(over="ignore"):
            away = gains - gains.min()
        away = np.minimum(away, np.finfo(np.float64).max / len(gains) / 2)
        gains = away + max(float(away.max()) / max(len(gains) - 1, 1), np.finfo(np.float64).tiny)
    gains = np.maximum(gains / gains.max(), LEAST)
    return np.asarray(gains / gains.sum(), dtype=np.float64)


def survivors(
    gains: Array, count: int, elites: int, tournament: int, by_chance: bool, rng: np.random.Generator
) -> list[int]:
    """The members that stay: `elites` best, then winners of tournaments among the rest, or drawn by chance; each once.

    Args:
        gains: of all, shape ``(members,)``, larger is better.
        count: how many stay; all where there are no more.
        elites: how many of the best stay in any case.
        tournament: how many of those that are left compete for each place.
        by_chance: whether places are drawn in proportion to `chances` instead.

    Returns:
        Their numbers, in order.
    """
    if len(gains) <= count:
        return list(range(len(gains)))
    order = np.argsort(-gains, kind="stable").tolist()
    stay, left = order[:elites], sorted(order[elites:])
    if by_chance:
        drawn = rng.choice(len(left), size=count - elites, replace=False, p=chances(gains[left]))
        return sorted([*stay, *(left[int(index)] for index in drawn)])
    while len(stay) < count:
        drawn = rng.choice(len(left), size=min(tournament, len(left)), replace=False)
        stay.append(left.pop(int(drawn[int(np.argmax(gains[[left[int(index)] for index in drawn]]))])))
    return sorted(stay)
