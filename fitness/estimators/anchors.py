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

    Half of the items that a model is run on are these, the others are drawn (`evomerge.search.racing.parts`): `weights`
    says how many items each stands for.

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
        self.ranks = np.empty(values.shape[1])
        drawn = drawn_order(columns)
        for metrics in self._tasks():
            shuffled = np.argsort(drawn[columns.stretches[metrics[0]]])
            order = self._order(metrics, values, shuffled)
            for metric in metrics:
                self.ranks[columns.stretches[metric]] = np.argsort(order)

    def places(self, counts: Mapping[str, int]) -> dict[str, list[int]]:
        """By task all of its places, in order; of tasks that nothing counts of as they come."""
        found = {}
        for task, metrics in places_of(self._columns, counts).items():
            ranks = self.ranks[self._columns.stretches[metrics[0]]] if metrics else np.arange(counts[task])
            found[task] = [int(place) for place in np.argsort(ranks, kind="stable")]
        return found

    def chosen(self, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the items seen were chosen: those that come first in the order, without a gap.

        Where that is all of a task's nothing was drawn, and none is taken as chosen.

        Args:
            seen: shape ``(columns,)``.
        """
        found = np.zeros_like(seen)
        for stretch in self._columns.stretches:
            own, ranks = seen[stretch], self.ranks[stretch]
            first = float(ranks[~own].min(initial=len(own)))
            if first < own.sum():
                found[stretch] = ranks < first
        return found

    def weights(self, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many items of its task each item seen stands for: the chosen ones for themselves, those that were drawn
        for all others.

        Args:
            seen: shape ``(columns,)``.

        Returns:
            Shape ``(columns,)``, 0 where an item was not seen.
        """
        found, chosen = seen.astype(np.float64), self.chosen(seen)
        for stretch in self._columns.stretches:
            drawn = seen[stretch] & ~chosen[stretch]
            found[stretch][drawn] = (len(drawn) - int(chosen[stretch].sum())) / max(1, int(drawn.sum()))
        return found

    def _tasks(self) -> list[list[int]]:
        groups: dict[tuple[str, int], list[int]] = {}
        for metric, (task, stretch) in enumerate(zip(self._columns.tasks, self._columns.stretches, strict=True)):
            groups.setdefault((task, stretch.stop - stretch.start), []).append(metric)
        return list(groups.values())

    def _order(
        self, metrics: Sequence[int], values: NDArray[np.float64], shuffled: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        stretches = [self._columns.stretches[metric] for metric in metrics]
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


def drawn_order(columns: Columns) -> NDArray[np.float64]:
    """A drawn order of each task's items: the place of each, the same for all metrics of a task with as many."""
    found = np.empty(sum(stretch.stop - stretch.start for stretch in columns.stretches))
    for stretch in columns.stretches:
        found[stretch] = np.argsort(np.random.default_rng(_SEED).permutation(stretch.stop - stretch.start))
    return found


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
