"""The promising distribution of an earlier search, which an evolution strategy begins with.

Nomura et al., "Warm Starting CMA-ES for Hyperparameter Optimization" (AAAI 2021, arXiv 2012.06932), definition 3.2 and
section 4: a Gaussian fitted to the best share gamma of the earlier evaluations, each smoothed by a Gaussian of standard
deviation alpha. Choices are fitted by their frequencies, likewise smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError

Array = NDArray[np.float64]
Given = bool | Literal["auto"]

GAMMA = 0.1
"""The share of the earlier evaluations that are promising (the paper's)."""

ALPHA = 0.1
"""The standard deviation that each is smoothed by, in units of a gene's range (the paper's)."""

LEAST = 4
"""Promising evaluations that ``auto`` takes at least: fewer say where to begin, which the start does, and no more."""


@dataclass(frozen=True)
class Promising:
    """A distribution over coordinates and choices.

    Attributes:
        mean: of the coordinates, shape ``(numbers,)``.
        covariance: theirs, shape ``(numbers, numbers)``.
        shares: of every variable its choices' probabilities, shape ``(choices,)`` each.
    """

    mean: Array
    covariance: Array
    shares: Sequence[Array]

    def state(self) -> dict[str, Any]:
        """JSON values and arrays."""
        return {
            "mean": self.mean.copy(),
            "covariance": self.covariance.copy(),
            "shares": [s.tolist() for s in self.shares],
        }

    @staticmethod
    def of_state(state: Mapping[str, Any] | None) -> Promising | None:
        """What `state` gave."""
        if state is None:
            return None
        shares = [np.array(share, dtype=np.float64) for share in state["shares"]]
        mean, covariance = (np.array(state[name], dtype=np.float64) for name in ("mean", "covariance"))
        return Promising(mean, covariance, shares)


def check_warm_start(given: Any) -> None:
    """Raise `ConfigError` unless ``strategy.warm_start`` is true, false or auto."""
    if given is not True and given is not False and given != "auto":
        raise ConfigError(f"strategy.warm_start is {given!r}", "true, false or auto")


def promising(points: Array, choices: NDArray[np.int64], counts: Sequence[int], given: Given) -> Promising | None:
    """Fit the best of earlier evaluations.

    Args:
        points: coordinates from 0 to 1, the best first, shape ``(evaluations, numbers)``.
        choices: numbers of choices, shape ``(evaluations, variables)``.
        counts: how many choices each variable has.
        given: what ``strategy.warm_start`` says.

    Returns:
        ``None`` where there are too few for what is given.
    """
    best = math.floor(GAMMA * len(points))
    if given is False or len(points) == 0 or (given == "auto" and best < LEAST):
        return None
    top, chosen = points[: max(best, 1)], choices[: max(best, 1)]
    mean = top.mean(axis=0)
    spread = (top - mean).T @ (top - mean) / len(top)
    shares = [
        (np.bincount(chosen[:, i], minlength=count) + 1 / count) / (len(chosen) + 1) for i, count in enumerate(counts)
    ]
    return Promising(mean, spread + ALPHA**2 * np.eye(points.shape[1]), shares)
