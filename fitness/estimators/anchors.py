"""Which items to run first: an order of each task's items, every beginning of which is a good choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.anchor_names import Anchors
from fitness.estimators.columns import Columns, places_of
from fitness.estimators.item_response import Fit
from fitness.estimators.latent_steps import logistic

_CHOSEN = 400
"""Items of a task that are put in order one by one; those behind them come as they are."""

_SEED = 20240222


class AnchorOrder:
    """The order of each task's items.

    - ``clusters``: each next item is the one that brings all items of the task nearest to one of those before, by the
      parameters of the items (tinyBenchmarks, arXiv 2402.14992, clusters these; the greedy choice makes every beginning
      of the order a choice of medoids).
    - ``entropy``: the items on which known models disagree most (as Evo-L2S, arXiv 2604.06465).
    - ``information``: each next item is the one that adds most to the determinant of the Fisher information at the
      abilities of known models.
    - ``none``: at random.

    A mean over chosen items is no mean over all: `weights` says how many items each stands for.

    Args:
        columns: where metrics stand.
        fit: what the items are like.
        values: of known models, shape ``(models, columns)``, NaN where an item was not run.
        anchors: which order.

    Attributes:
        ranks: shape ``(columns,)``: the place of each item in the order of its task.
    """

    def __init__(self, columns: Columns, fit: Fit, values: NDArray[np.float64], anchors: Anchors) -> None:
        self._columns = columns
        self._fit, self._anchors = fit, anchors
        self._weights: dict[bytes, NDArray[np.float64]] = {}
        self.ranks = np.empty(values.shape[1])
        for metrics in self._tasks():
            order = self._order(metrics, values)
            ranks = np.empty(len(order))
            ranks[order] = np.arange(len(order))
            for metric in metrics:
                self.ranks[columns.stretches[metric]] = ranks

    def places(self, counts: Mapping[str, int]) -> dict[str, list[int]]:
        """By task all of its places, in order; of tasks that nothing counts of as they come."""
        found = {}
        for task, metrics in places_of(self._columns, counts).items():
            ranks = self.ranks[self._columns.stretches[metrics[0]]] if metrics else np.arange(counts[task])
            found[task] = [int(place) for place in np.argsort(ranks, kind="stable")]
        return found

    def weights(self, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many items of its task each item seen stands for: those that are nearest to it by their parameters.

        Args:
            seen: shape ``(columns,)``.

        Returns:
            Shape ``(columns,)``, 0 where an item was not seen.
        """
        key = seen.tobytes()
        if key not in self._weights:
            found = np.zeros(len(seen))
            for metrics in self._tasks():
                vectors = self._vectors(metrics)
                for metric in metrics:
                    stretch = self._columns.stretches[metric]
                    own = np.flatnonzero(seen[stretch])
                    if len(own):
                        nearest = _distances(vectors, vectors[own]).argmin(axis=1)
                        found[stretch.start + own] = np.bincount(nearest, minlength=len(own))
            self._weights = {key: found}  # candidates of a generation are seen on the same items
        return self._weights[key]

    def _tasks(self) -> list[list[int]]:
        groups: dict[tuple[str, int], list[int]] = {}
        for metric, (task, stretch) in enumerate(zip(self._columns.tasks, self._columns.stretches, strict=True)):
            groups.setdefault((task, stretch.stop - stretch.start), []).append(metric)
        return list(groups.values())

    def _order(self, metrics: Sequence[int], values: NDArray[np.float64]) -> NDArray[np.int64]:
        stretches = [self._columns.stretches[metric] for metric in metrics]
        count = stretches[0].stop - stretches[0].start
        shuffled = np.random.default_rng(_SEED).permutation(count)
        if self._anchors == "none":
            return shuffled
        if self._anchors == "entropy":
            told = np.sum([_disagreement(values[:, stretch]) for stretch in stretches], axis=0)
            return shuffled[np.argsort(-told[shuffled], kind="stable")]
        if self._anchors == "clusters":
            chosen = _medoids(self._vectors(metrics))
        else:
            chosen = _informative(np.concatenate([self._information(stretch) for stretch in stretches], axis=2))
        rest = shuffled[~np.isin(shuffled, chosen)]
        return np.concatenate([chosen, rest])

    def _vectors(self, metrics: Sequence[int]) -> NDArray[np.float64]:
        """A row for each item of a task: slopes and intercepts of its metrics."""
        parts = [self._fit.items.mean[self._columns.stretches[metric]] for metric in metrics]
        return np.concatenate(parts, axis=1)

    def _information(self, stretch: slice) -> NDArray[np.float64]:
        """By item the square root of its Fisher information, mean over known abilities: ``(items, D, 1)``."""
        items = self._fit.items.take(stretch)
        binary = bool(items.binary.all())
        chance = logistic(self._fit.abilities[binary] @ items.mean.T)
        weight = (chance * (1 - chance)).mean(axis=0) if binary else items.precision
        root: NDArray[np.float64] = (items.mean[:, :-1] * np.sqrt(weight)[:, None])[:, :, None]
        return root


def _disagreement(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variance of each item over models, in units of the metric's largest; 0 where fewer than two were seen."""
    seen = ~np.isnan(values)
    counts = seen.sum(axis=0)
    centre = np.where(seen, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    variance = np.where(seen, np.square(values - centre), 0.0).sum(axis=0) / (counts + 1)
    largest = float(variance.max(initial=0.0))
    scaled: NDArray[np.float64] = variance / largest if largest else variance
    return scaled


def _distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1) - 2 * first @ second.T
    found: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    return found


def _medoids(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Greedily those that bring all nearest to one of them."""
    apart = _distances(vectors, vectors)
    nearest = np.full(len(vectors), np.inf)
    chosen = [int(apart.sum(axis=0).argmin())]
    left = np.ones(len(vectors), dtype=bool)
    while True:
        left[chosen[-1]] = False
        nearest = np.minimum(nearest, apart[:, chosen[-1]])
        if len(chosen) == min(_CHOSEN, len(vectors)):
            return np.array(chosen)
        totals = np.minimum(nearest[:, None], apart).sum(axis=0)
        chosen.append(int(np.where(left, totals, np.inf).argmin()))


def _informative(roots: NDArray[np.float64]) -> NDArray[np.int64]:
    """Greedily those that add most to the determinant of the information, prior included.

    Args:
        roots: shape ``(items, D, metrics)``: an item's information is ``r rᵀ``.
    """
    count, size, _ = roots.shape
    inverse = np.eye(size)
    left, chosen = np.ones(count, dtype=bool), []
    for _ in range(min(_CHOSEN, count)):
        inner = np.eye(roots.shape[2]) + np.einsum("iam,ab,ibn->imn", roots, inverse, roots)
        best = int(np.where(left, np.linalg.det(inner), -np.inf).argmax())  # det(I + rᵀ A⁻¹ r): the factor gained
        left[best] = False
        chosen.append(best)
        moved = inverse @ roots[best]
        inverse = inverse - moved @ np.linalg.inv(inner[best]) @ moved.T
    return np.array(chosen)
