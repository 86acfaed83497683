"""Right and wrong answers as chances, where a metric of the same items says how near each was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.columns import Columns, Row
from fitness.estimators.item_response import Metric
from fitness.estimators.latent_steps import logistic

_STEPS = 25
_LATEST = 48  # models: a search moves on
_TOLD = 0.1  # of what is not known of an answer, what the other metric must tell
_BETWEEN = 1e-4  # variance that models' means differ by, at least
_PRIOR = 1.0  # precision of the two coefficients: answers that are told apart wholly have finite ones


@dataclass(frozen=True)
class _Curve:
    metric: int
    answers: slice
    other: slice
    level: float
    slope: float
    centre: float
    scale: float
    usual: float = 0.0
    between: float = 0.0
    within: float = 0.25

    def chance(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of right answers, shape ``(..., items)``."""
        numbers = (values[..., self.other] - self.centre) / self.scale
        return np.where(np.isnan(values[..., self.answers]), np.nan, logistic(self.level + self.slope * numbers))


class Chances:
    """Logistic regressions of answers on a metric of numbers of the same items, one for each metric of answers.

    A log-likelihood that was nearly enough for a right answer tells more of a model than the 0 of its accuracy.

    Args:
        columns: where metrics stand.
        values: of known models, shape ``(K, columns)``, NaN where an item was not run.
        metrics: of `values`: which are answers.
    """

    def __init__(self, columns: Columns, values: NDArray[np.float64], metrics: Sequence[Metric]) -> None:
        self._curves: list[_Curve] = []
        for metric, answers in enumerate(columns.stretches):
            if not metrics[metric].binary:
                continue
            found = [
                curve
                for other, stretch in enumerate(columns.stretches)
                if columns.tasks[other] == columns.tasks[metric]
                and not metrics[other].binary
                and stretch.stop - stretch.start == answers.stop - answers.start
                and (curve := _curve(values, metric, answers, stretch)) is not None
            ]
            if found:
                self._curves.append(_with_rest(max(found, key=lambda each: each[1])[0], values))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._curves)

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values with chances in the place of answers, NaN where they are; shape ``(..., columns)``."""
        made = values.copy()
        for curve in self._curves:
            made[..., curve.answers] = curve.chance(values)
        return made

    def rest(self, columns: Columns, row: Row, chances: Row) -> Iterator[tuple[int, float, float]]:
        """What a model's answers are above their chances, by metric: expected of the next, and its variance.

        Args:
            columns: where metrics stand in the rows.
            row: what the model gave.
            chances: of `row`.
        """
        for curve in self._curves:
            own = columns.stretches[curve.metric]
            above = (row[own] - chances[own])[~np.isnan(row[own])]
            drawn = curve.within / max(len(above), 1)
            share = curve.between / (curve.between + drawn) if len(above) else 0.0
            mean = float(above.mean()) if len(above) else 0.0
            yield curve.metric, curve.usual + share * (mean - curve.usual), (1 - share) * curve.between


def _with_rest(curve: _Curve, values: NDArray[np.float64]) -> _Curve:
    """With how much answers are above their chances: usually, from model to model, and within a model."""
    above = values[-_LATEST:, curve.answers] - curve.chance(values[-_LATEST:])
    counts = (~np.isnan(above)).sum(axis=1)
    above, counts = above[counts > 1], counts[counts > 1]
    if not len(above):
        return curve
    means = np.nanmean(above, axis=1)
    within = float(np.nansum(np.square(above - means[:, None]))) / float((counts - 1).sum())
    usual = float(np.average(means, weights=counts))
    moved = float(counts @ np.square(means - usual)) - within * (len(counts) - 1)
    between = moved / (counts.sum() - float(counts @ counts) / counts.sum()) if len(counts) > 1 else 0.0
    return replace(curve, usual=usual, between=max(between, _BETWEEN), within=max(within, 1e-4))


def _curve(values: NDArray[np.float64], metric: int, answers: slice, other: slice) -> tuple[_Curve, float] | None:
    """The regression, and what it tells of what is not known of an answer; ``None`` where that is little."""
    right, numbers = values[-_LATEST:, answers].ravel(), values[-_LATEST:, other].ravel()
    both = np.isfinite(right) & np.isfinite(numbers)
    right, numbers = right[both], numbers[both]
    if not len(right) or right.min() == right.max() or numbers.min() == numbers.max():
        return None
    centre, scale = float(numbers.mean()), float(numbers.std())
    x = np.stack([np.ones(len(numbers)), (numbers - centre) / scale], axis=1)
    beta = np.zeros(2)
    for _ in range(_STEPS):
        chance = logistic(x @ beta)
        steep = np.maximum(chance * (1 - chance), 1e-9)
        precision = (x * steep[:, None]).T @ x + _PRIOR * np.eye(2)
        step = np.linalg.solve(precision, x.T @ (right - chance) - _PRIOR * beta)
        beta = beta + step
        if np.abs(step).max() < 1e-6:
            break
    chance = logistic(x @ beta)
    share = 1 - float(np.square(right - chance).mean()) / float(right.var())
    return (
        (_Curve(metric, answers, other, float(beta[0]), float(beta[1]), centre, scale), share)
        if share > _TOLD
        else None
    )
