"""What a search that goes on as it does would still gain: an estimate from its latest scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 20
"""Scores that an estimate takes at least."""

MOST = 1000
"""Scores that an estimate takes at most: the latest."""

_TAIL = 0.25  # the share of the scores that the tail is fitted to
_SAMPLES = 400  # of the bootstrap
_LEVELS = 64  # quantiles of the largest score that its mean is taken over


@dataclass(frozen=True)
class RemainingGain:
    """By how much the best score would rise.

    Attributes:
        evaluations: how many more.
        expected: in units of the objective, 0 or more.
        low, high: between them lie 90 % of what bootstrap samples of the scores say.
    """

    evaluations: int
    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.evaluations} more like the latest would gain about {self.expected:.2g} "
            f"(90 % of bootstrap samples: {self.low:.2g} to {self.high:.2g})"
        )

    def to_json(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> RemainingGain | None:
        """What `to_json` gave; ``None`` for anything else."""
        if not isinstance(content, Mapping):
            return None
        given = [content.get(name) for name in ("expected", "low", "high")]
        values = [float(v) for v in given if isinstance(v, int | float) and math.isfinite(v)]
        evaluations = content.get("evaluations")
        return RemainingGain(evaluations, *values) if type(evaluations) is int and len(values) == 3 else None


def remaining_gain(gains: Sequence[float], best: float, evaluations: int) -> RemainingGain | None:
    """The gain of so many evaluations more, were they drawn as the latest were; ``None`` where these say too little.

    Peaks over a threshold: the largest quarter of the scores follows a generalised Pareto distribution (Pickands 1975),
    fitted by probability-weighted moments (Hosking and Wallis 1987, equation 5), whose tail is taken to be no heavier
    than an exponential one, as scores of models are bounded. How far the largest of the scores to come is above the
    best is an expectation by that fit; its uncertainty is that over 400 bootstrap samples of the scores, which know
    nothing of scores that no candidate had: on a hundred independent scores (accuracies, normal, beta, uniform) the
    interval held the truth in 78 to 97 % of the cases, and the expectation was within a factor of four of it. A
    strategy that begins to learn again, or anew, does better than this says; one that converges further, worse.

    Args:
        gains: of the latest candidates, larger is better; those that are not finite are left out.
        best: the best so far, of all candidates.
        evaluations: how many more.
    """
    scores = np.array([gain for gain in gains if math.isfinite(gain)], dtype=np.float64)[-MOST:]
    if len(scores) < LEAST or not math.isfinite(best) or evaluations < 1:
        return None
    rng = np.random.default_rng(0)
    drawn = -np.sort(-scores[rng.integers(0, len(scores), (_SAMPLES, len(scores)))], axis=1)
    found = _expected(drawn, best, evaluations)
    expected = float(_expected(-np.sort(-scores)[None, :], best, evaluations)[0])
    low, high = np.quantile(found, (0.05, 0.95))
    values = (expected, min(expected, low), max(expected, high))
    # Digits beyond these say nothing, and differ between machines.
    return RemainingGain(evaluations, *(float(f"{value:.3g}") for value in values))


def _expected(drawn: NDArray[np.float64], best: float, evaluations: int) -> NDArray[np.float64]:
    """The expected gain by each row of scores in falling order, shape ``(rows,)``."""
    count = math.ceil(_TAIL * drawn.shape[1])
    above = drawn[:, :count] - drawn[:, count : count + 1]  # the excesses, largest first
    mean = above.mean(axis=1)
    # Hosking and Wallis: alpha_1 is the mean of the excesses weighted by the share of larger ones.
    weighted = (above * ((np.arange(count) + 0.35) / count)).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.where(mean > 0, 2 - mean / (mean - 2 * weighted), -1.0)
        scale = 2 * mean * weighted / (mean - 2 * weighted)
    heavy = ~(shape < -1e-6) | ~np.isfinite(scale)
    shape, scale = np.where(heavy, 0.0, shape), np.where(heavy, mean, scale)
    # The largest of n has probability p^(1/n) below it at its own quantile p.
    rare = -np.expm1(np.log((np.arange(_LEVELS) + 0.5) / _LEVELS) / evaluations) / (count / drawn.shape[1])
    beyond = np.minimum(rare, 1.0)[None, :]
    safe = np.where(shape < 0, shape, -1.0)[:, None]
    excess = np.where(shape[:, None] < 0, (beyond**-safe - 1) / safe, -np.log(beyond)) * scale[:, None]
    gain: NDArray[np.float64] = np.maximum(drawn[:, count : count + 1] + excess - best, 0.0).mean(axis=1)
    return gain
