"""The mean of the items that were run, task by task, and its standard error (Cochran, Sampling Techniques, ch. 5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Items
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimate
from fitness.estimators.columns import Columns, Row


class StratifiedMean:
    """The mean over the items run, task by task, for the mean over all.

    Unbiased for items drawn at random. The variance of a task's mean of ``n`` of ``N`` items is ``(1 - n/N) s²/n``: 0
    where all were run (Cochran, 1977, eq. 5.7). With few items, or items that all got the same, ``s²`` says too little:
    it is taken together with one pseudo-observation of the variance that known models have in that task,
    ``s² = ((n - 1) s² + σ²) / n``. Metrics of one task are summed item by item, so that what they have in common
    counts. Where a logarithm counts, the error is that of the mean, divided by it (delta method), and a mean counts
    half an item's worth at least.

    Args:
        shares: what the mean of each metric's items counts.
        objectives: to estimate.

    >>> import numpy as np
    >>> score = MetricShare("quiz/acc", 1.0, objective="score")
    >>> estimator = StratifiedMean([score], [Objective("score")])
    >>> estimator.fit([])
    >>> some = {"quiz/acc": np.array([1.0, 0.0, 1.0, 1.0, np.nan, np.nan, np.nan, np.nan])}
    >>> found = estimator.estimate(some)["score"]
    >>> found.value, round(found.error, 4)
    (0.75, 0.1768)
    """

    def __init__(self, shares: Sequence[MetricShare], objectives: Sequence[Objective]) -> None:
        self.columns = Columns(shares, objectives)
        self._spread: NDArray[np.float64] | None = None

    def fit(self, known: Sequence[Items]) -> None:
        """Take down how the values of known models vary within each task."""
        rows = [self.columns.row(items) for items in known]
        self._spread = within_tasks(self.columns, np.array(rows)) if rows else None

    def only(self, part: NDArray[np.bool_]) -> StratifiedMean:
        """The same for some columns, as if there were no others; of each metric there must be some."""
        made = copy.copy(self)
        made.columns = self.columns.only(part)
        return made

    def order(self, counts: Mapping[str, int]) -> Mapping[str, Sequence[int]] | None:
        """``None``: any order that is drawn at random."""
        return None

    def estimate(self, items: Items) -> Mapping[str, Estimate]:
        """By objective the stratified mean and its standard error.

        Raises:
            FitnessError: a task of which no item was run, or items of another shape than the known models'.
        """
        return self.of_row(self.columns.row(items))

    def of_row(self, row: Row, weights: Row | None = None) -> dict[str, Estimate]:
        """`estimate` of a row.

        Args:
            row: shape ``(columns,)``, NaN where an item was not run.
            weights: of the items, as their means are taken with; equal where there are none.
        """
        columns, seen = self.columns, ~np.isnan(row)
        strata = columns.strata(seen)
        means = [_mean(row[s], None if weights is None else weights[s], m) for s, m in self._metrics()]
        floors = [0.5 / (s.stop - s.start) for s in columns.stretches]
        values = columns.values(means, None if seen.all() else floors)
        found = {}
        for name in columns.terms:
            slopes = columns.gradient(name, means, floors)
            variance = math.fsum(self._variance(row, seen, stratum, slopes, weights) for stratum in strata)
            found[name] = Estimate(values[name], math.sqrt(variance))
        return found

    def difference(self, items: Items, other: Items) -> Mapping[str, Estimate]:
        """By objective the mean over common items of how much more the first gets, item by item.

        Its error knows nothing of other models: the pseudo-observation has the variance of a fair coin, or that of the
        differences themselves where they are no differences of values from 0 to 1.

        Raises:
            FitnessError: a task of which the two have no item in common.
        """
        row, other_row = self.columns.row(items), self.columns.row(other)
        columns, both = self.columns, ~(np.isnan(row) | np.isnan(other_row))
        rows = [np.where(both, each, np.nan) for each in (row, other_row)]
        means = [[_mean(r[s], None, m) for s, m in self._metrics()] for r in rows]
        floors = [0.5 / (s.stop - s.start) for s in columns.stretches]
        values = [columns.values(each, None if both.all() else floors) for each in means]
        found = {}
        for name in columns.terms:
            slopes = [columns.gradient(name, each, floors) for each in means]
            change = np.full(len(row), np.nan)
            for metric, stretch in enumerate(columns.stretches):
                change[stretch] = slopes[0][metric] * rows[0][stretch] - slopes[1][metric] * rows[1][stretch]
            ones = (np.abs(slopes[0]) + np.abs(slopes[1]) > 0).astype(float)
            prior = np.abs(slopes[0]) / 2 + np.abs(slopes[1]) / 2
            variance = math.fsum(
                self._variance(change, both, stratum, ones, None, prior) for stratum in columns.strata(both)
            )
            found[name] = Estimate(values[0][name] - values[1][name], math.sqrt(variance))
        return found

    def by_item(self, items: Items, at: Items) -> Mapping[str, Items]:
        """By objective what each item adds; see `Columns.by_item`."""
        return self.columns.by_item(items, at)

    def _metrics(self) -> list[tuple[slice, str]]:
        return list(zip(self.columns.stretches, self.columns.metrics, strict=True))

    def _variance(
        self,
        row: Row,
        seen: NDArray[np.bool_],
        stratum: Sequence[int],
        slopes: NDArray[np.float64],
        weights: Row | None,
        prior: NDArray[np.float64] | None = None,
    ) -> float:
        """Of the weighted sum of the means of a stratum's metrics, whose same items were seen."""
        stretches = [self.columns.stretches[metric] for metric in stratum]
        inside = seen[stretches[0]]
        if inside.all() or not any(slopes[metric] for metric in stratum):
            return 0.0
        sums = sum(slopes[m] * row[s][inside] for m, s in zip(stratum, stretches, strict=True))
        n, of = int(inside.sum()), len(inside)
        expected = (
            self._expected(stratum, slopes, row, seen)
            if prior is None
            else _paired(stretches, prior[list(stratum)], row)
        )
        share = np.full(n, 1.0 / n)
        if weights is not None:
            share = weights[stretches[0]][inside]
            share = share / share.sum()
        spread = float(np.square(sums - share @ sums) @ share) * n  # (n - 1) s² where weights are equal
        return (1 - n / of) * (spread + expected) / n * float(share @ share)

    def _expected(
        self, stratum: Sequence[int], slopes: NDArray[np.float64], row: Row, seen: NDArray[np.bool_]
    ) -> float:
        """The variance that known models have within a task; without any that of a fair coin for values from 0 to 1,
        else that of the items themselves, which is infinite for one."""
        if self._spread is not None:
            own = slopes[list(stratum)]
            expected = float(own @ self._spread[np.ix_(stratum, stratum)] @ own)
            if not math.isnan(expected):
                return expected
        expected = 0.0
        for metric in stratum:
            values = row[self.columns.stretches[metric]][seen[self.columns.stretches[metric]]]
            if values.min() >= -1 and values.max() <= 1:
                expected += 0.25 * slopes[metric] ** 2
            else:
                expected += slopes[metric] ** 2 * float(np.var(values, ddof=1)) if len(values) > 1 else math.inf
        return expected


def _paired(stretches: Sequence[slice], scales: NDArray[np.float64], changes: Row) -> float:
    """The variance that differences of a task's metrics may have: that of a fair coin for those of values from 0 to 1,
    else their own, which is infinite for one.

    Args:
        stretches: where each metric's stand.
        scales: how much an objective changes with a metric.
        changes: of the objective, item by item; NaN where the two have none in common.
    """
    expected = 0.0
    for stretch, scale in zip(stretches, scales.tolist(), strict=True):
        values = changes[stretch][~np.isnan(changes[stretch])]
        if np.abs(values).max() <= 2 * scale:
            expected += 0.25 * scale**2
        else:
            expected += float(np.var(values, ddof=1)) if len(values) > 1 else math.inf
    return expected


def within_tasks(columns: Columns, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariance that the metrics of a task have within a model, mean over models; NaN where none tells.

    Args:
        columns: where metrics stand.
        values: shape ``(models, columns)``, NaN where an item was not run.

    Returns:
        Shape ``(metrics, metrics)``, 0 between tasks.
    """
    size = len(columns.metrics)
    found = np.zeros((size, size))
    for a in range(size):
        own = values[:, columns.stretches[a]]
        least = 0.25 / (len(values) + 1) if np.nanmin(own, initial=0) >= 0 and np.nanmax(own, initial=0) <= 1 else 0.0
        for b in range(a, size):
            if columns.tasks[a] == columns.tasks[b]:
                found[a, b] = found[b, a] = _covariance(
                    values[:, columns.stretches[a]], values[:, columns.stretches[b]]
                )
        found[a, a] = max(found[a, a], least)  # a task that all known models fail may have items that the next solves
    return found


def _covariance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if first.shape != second.shape:
        return math.nan
    both = ~(np.isnan(first) | np.isnan(second))
    counts = both.sum(axis=1)
    enough = counts > 1
    if not enough.any():
        return math.nan
    rows = []
    for each in (first, second):
        total = np.where(both, each, 0.0).sum(axis=1) / np.maximum(counts, 1)
        rows.append(np.where(both, each - total[:, None], 0.0))
    products = (rows[0] * rows[1]).sum(axis=1)[enough] / (counts[enough] - 1)
    return float(products.mean())


def _mean(values: Row, weights: Row | None, metric: str) -> float:
    seen = ~np.isnan(values)
    if not seen.any():
        raise FitnessError(f"no item of {metric} was run", "at least one of each task")
    if weights is None or seen.all():
        return math.fsum(values[seen]) / int(seen.sum())
    return float(weights[seen] @ values[seen] / weights[seen].sum())
