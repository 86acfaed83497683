"""The items of all metrics as one row of columns, and the objectives that they make."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Items
from evomerge.errors import FitnessError, nearest
from evomerge.objectives import MetricShare, Objective

Row = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """What the mean of a metric's items counts in an objective.

    Attributes:
        metric: its place in `Columns.metrics`.
        weight: its factor, negative where the metric's better values make the objective worse.
        log: whether the logarithm of the mean counts.
    """

    metric: int
    weight: float
    log: bool


class Columns:
    """Where the items of each metric stand in a row, and which terms make each objective.

    Args:
        shares: what the mean of each metric's items counts.
        objectives: every one of them has a share; the empty name in a share means the only one.

    Attributes:
        metrics: ``task/metric``, in the order of the shares.
        tasks: the task of each metric.
        terms: by objective.
        stretches: where the items of each metric stand; known once `row` saw some.

    Raises:
        FitnessError: an objective without shares, or a share of none.
    """

    def __init__(self, shares: Sequence[MetricShare], objectives: Sequence[Objective]) -> None:
        self.metrics = list(dict.fromkeys(share.metric for share in shares))
        self.tasks = [metric.rpartition("/")[0] for metric in self.metrics]
        directions = {objective.name: objective.direction for objective in objectives}
        self.terms: dict[str, list[Term]] = {name: [] for name in directions}
        for share in shares:
            name = share.objective or (next(iter(directions)) if len(directions) == 1 else "")
            if name not in directions:
                raise FitnessError(f"{share.metric} counts in objective {name!r}", nearest(name, directions))
            weight = share.weight if share.direction == directions[name] else -share.weight
            self.terms[name].append(Term(self.metrics.index(share.metric), weight, share.transform == "log"))
        for name, terms in self.terms.items():
            if not terms:
                raise FitnessError(f"no metric counts in objective {name!r}", "each objective has some")
        self.stretches: list[slice] = []

    def row(self, items: Items) -> Row:
        """The items of a model as one row, NaN where an item was not run.

        Raises:
            FitnessError: a metric is missing, or has another number of items than in the rows before.
        """
        for metric in self.metrics:
            if metric not in items:
                raise FitnessError(f"the items have no metric {metric!r}", nearest(metric, items))
        if not self.stretches:
            ends = np.cumsum([len(items[metric]) for metric in self.metrics]).tolist()
            self.stretches = [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        for metric, stretch in zip(self.metrics, self.stretches, strict=True):
            if len(items[metric]) != stretch.stop - stretch.start:
                raise FitnessError(
                    f"{metric} has {len(items[metric])} items", f"{stretch.stop - stretch.start}, as other models have"
                )
        return np.concatenate([np.asarray(items[metric], dtype=np.float64) for metric in self.metrics])

    def only(self, part: NDArray[np.bool_]) -> Columns:
        """The same for some columns, as if there were no others.

        Args:
            part: shape ``(columns,)``; of each metric there must be some.
        """
        made = copy.copy(self)
        ends = np.cumsum([int(part[stretch].sum()) for stretch in self.stretches]).tolist()
        made.stretches = [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        return made

    def values(self, means: Sequence[float], floors: Sequence[float] | None = None) -> dict[str, float]:
        """By objective its value for these means of the metrics; NaN for a logarithm that there is not.

        Args:
            means: by metric.
            floors: by metric what a mean counts at least where its logarithm does.
        """
        return {
            name: math.fsum(term.weight * _counted(term, means, floors) for term in terms)
            for name, terms in self.terms.items()
        }

    def gradient(self, name: str, means: Sequence[float], floors: Sequence[float]) -> NDArray[np.float64]:
        """How an objective changes with the mean of each metric, shape ``(metrics,)``; of logarithms at `means`."""
        slopes = np.zeros(len(self.metrics))
        for term in self.terms[name]:
            slopes[term.metric] += term.weight / (max(means[term.metric], floors[term.metric]) if term.log else 1.0)
        return slopes

    def by_item(self, items: Items, at: Items) -> dict[str, dict[str, Row]]:
        """By objective and stratum what each item adds, NaN where it was not run; the means sum to the objective.

        Metrics of one task that have as many items are one stratum, under the first one's name, summed item by item.

        Args:
            items: of a model.
            at: of a model whose means the tangents of logarithms touch at, half an item's worth at least.
        """
        row, touched = self.row(items), self.row(at)
        found: dict[str, dict[str, Row]] = {}
        for name, terms in self.terms.items():
            strata: dict[tuple[str, int], str] = {}
            own = found.setdefault(name, {})
            for term in terms:
                stretch, metric = self.stretches[term.metric], self.metrics[term.metric]
                values, count = row[stretch], stretch.stop - stretch.start
                if term.log:
                    mean = max(float(np.nanmean(touched[stretch])), 0.5 / count)
                    values = math.log(mean) + (values - mean) / mean
                key = strata.setdefault((self.tasks[term.metric], count), metric)
                own[key] = own.get(key, 0.0) + term.weight * values
        return found

    def strata(self, seen: NDArray[np.bool_]) -> list[list[int]]:
        """The metrics of each task whose same items were run: what is summed item by item.

        Args:
            seen: shape ``(columns,)``.
        """
        groups: dict[tuple[str, bytes], list[int]] = {}
        for metric, (task, stretch) in enumerate(zip(self.tasks, self.stretches, strict=True)):
            groups.setdefault((task, seen[stretch].tobytes()), []).append(metric)
        return list(groups.values())


def _counted(term: Term, means: Sequence[float], floors: Sequence[float] | None) -> float:
    mean = means[term.metric]
    if not term.log:
        return mean
    mean = mean if floors is None else max(mean, floors[term.metric])
    return math.log(mean) if mean > 0 else math.nan


def places_of(columns: Columns, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The metrics of each task that have as many items as it has documents; empty for a task that nothing counts of."""
    return {
        task: [
            m
            for m, own in enumerate(columns.tasks)
            if own == task and columns.stretches and columns.stretches[m].stop - columns.stretches[m].start == count
        ]
        for task, count in counts.items()
    }
