"""SMAC's surrogate and what is found with it: a random forest, expected improvement, local search.

The forest is that of the `smac` package. Its runner, history and random states are not used, for they cannot be saved
and loaded exactly; nor is its local search, which makes an object of every neighbour that it looks at (minutes a
proposal for sixty genes) and takes two missing values for different ones. Everything here follows from its arguments.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ConfigSpace import ConfigurationSpace
from numpy.typing import NDArray
from scipy.special import log_ndtr
from smac.model.random_forest.random_forest import RandomForest

from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.strategies.bases.conditional import Active, acting
from evomerge.strategies.variation.coordinates import Coordinates

Array = NDArray[np.float64]

CLIMBS = 10
"""Local searches begin at so many of the told points and at so many of the random ones."""

NEIGHBOURS, REACH = 4, 0.2
"""Of a number: so many, with this standard deviation in units of its range (LION 2011, section 4.3)."""

STEPS = 100
"""Of a local search at most; it ends where no neighbour is better."""

_PROBES = 32

for _name in ("smac", "ConfigSpace"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class ForestSearch:
    """Finds the genomes of which a random forest expects the most improvement.

    Hutter, Hoos and Leyton-Brown, "Sequential Model-Based Optimization for General Algorithm Configuration" (LION
    2011): numbers in units of their range, choices by their number; local searches climb the expected improvement from
    the ten told points and the ten random ones where it is highest, to the best neighbour in one gene, and all of these
    are sorted by it. As in SMAC3 (arXiv 2109.09831) the forest learns logarithms of scaled costs (`log_scaled`).

    Genes that do not act are shown to the forest at a value that they cannot have: it learns that they are missing, and
    nothing from what they happen to be.

    Args:
        spec: the genes.
        active: which genes act; ``None`` where all do.
        trees: of the forest.
        candidates: random genomes among which local searches begin.
    """

    def __init__(self, spec: GenomeSpec, active: Active | None, *, trees: int, candidates: int) -> None:
        self._spec, self._active, self._trees, self._candidates = spec, active, trees, candidates
        self._coordinates = at = Coordinates(spec)
        self._numbers, self._counts = len(at.start), np.array(at.counts, dtype=np.int64)
        self._names = [*at.number_names, *at.choice_names]
        self._marks = np.array([-1.0] * self._numbers + at.counts, dtype=np.float64)
        self._space = ConfigurationSpace(
            space={f"number {i}": (0.0, 1.0) for i in range(self._numbers)}
            | {f"choice {i}": list(range(count)) for i, count in enumerate(at.counts)}
        )
        kinds = {gene.name: gene.kind for gene in spec}
        self._discrete = np.array([kinds[name] != "continuous" for name in self._names])
        self._known: dict[bytes, NDArray[np.bool_]] = {}
        if active is not None and self._numbers_decide():
            self._discrete[:] = True

    def best(self, told: Sequence[Genome], costs: Array, pending: Sequence[Genome], seed: int) -> list[Genome]:
        """Where improvement is expected, most of it first; may hold what was told.

        Args:
            told, costs: genomes, at least one, and their finite costs, shape ``(told,)``.
            pending: genomes that are being evaluated: the forest counts them with what it expects of them.
            seed: of the forest and of what is drawn.
        """
        rng = np.random.default_rng(seed)
        rows, values = self._rows(told), log_scaled(costs)
        forest = self._grown(rows, values, seed)
        if pending:
            waiting = self._rows(pending)
            values = np.concatenate([values, forest.predict(self.marked(waiting))[0].ravel()])
            rows = np.vstack([rows, waiting])
            forest = self._grown(rows, values, seed)
        lowest = float(forest.predict(self.marked(rows))[0].min())

        def improvement(points: Array) -> Array:
            mean, variance = forest.predict(self.marked(points))
            return log_improvement(mean, variance, lowest)

        drawn = self._coordinates.snapped(rng.random((self._candidates, self._numbers)))
        drawn = np.hstack([drawn, rng.integers(0, self._counts, (self._candidates, len(self._counts)))])
        random, known = improvement(drawn), improvement(rows)
        starts = np.vstack(
            [rows[np.argsort(-known, kind="stable")[:CLIMBS]], drawn[np.argsort(-random, kind="stable")[:CLIMBS]]]
        )
        tops, heights = self._climbed(starts, improvement, rng)
        points, heights = np.vstack([tops, drawn]), np.concatenate([heights, random])
        order = np.argsort(-heights, kind="stable")
        return [self._genome(point) for point in points[order[: len(rows) + len(tops) + self._candidates // 10]]]

    def marked(self, rows: Array) -> Array:
        """The points, genes that do not act put at a value that they cannot have."""
        if self._active is None or not len(rows):
            return rows
        keys = np.ascontiguousarray(rows[:, self._discrete])
        acts = np.ones(rows.shape, dtype=np.bool_)
        for i, key in enumerate(keys):
            found = self._known.get(code := key.tobytes())
            if found is None:
                found = self._known[code] = acting(self._active, [self._genome(rows[i])], self._names)[0]
            acts[i] = found
        return np.where(acts, rows, self._marks)

    def _numbers_decide(self) -> bool:
        """Whether it depends on continuous genes, too, which genes act, as far as some samples tell."""
        assert self._active is not None
        rng = np.random.default_rng(0)
        for _ in range(_PROBES):
            choices = rng.integers(0, self._counts)
            points = rng.random((2, self._numbers))
            points[1] = np.where(self._discrete[: self._numbers], points[0], points[1])
            pair = [self._coordinates.genome(point, choices) for point in points]
            if set(self._active(pair[0])) != set(self._active(pair[1])):
                return True
        return False

    def _rows(self, genomes: Sequence[Genome]) -> Array:
        return np.array([np.concatenate(self._coordinates.point(genome)) for genome in genomes], dtype=np.float64)

    def _genome(self, row: Array) -> Genome:
        return self._coordinates.genome(row[: self._numbers], row[self._numbers :].astype(np.int64))

    def _grown(self, rows: Array, values: Array, seed: int) -> _Forest:
        # smac's own bound on leaves, 2^20, bounds nothing and makes scikit-learn allocate for as many in every tree
        forest = _Forest(
            self._space,
            log_y=True,
            n_trees=self._trees,
            min_samples_leaf=1,
            max_leaf_nodes=None,
            n_jobs=1,
            seed=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forest.train(self.marked(rows), values[:, None])
        return forest

    def _climbed(self, points: Array, height: Any, rng: np.random.Generator) -> tuple[Array, Array]:
        """Where local searches end that begin at these points, and the heights there."""
        points, heights = points.copy(), height(points)
        climbing = np.arange(len(points))
        for _ in range(STEPS):
            around = [self._neighbours(points[i], rng) for i in climbing]
            found = np.split(height(np.vstack(around)), np.cumsum([len(each) for each in around])[:-1])
            moved = []
            for i, near, heights_there in zip(climbing, around, found, strict=True):
                top = int(np.argmax(heights_there))
                if heights_there[top] > heights[i]:
                    points[i], heights[i] = near[top], heights_there[top]
                    moved.append(i)
            climbing = np.array(moved, dtype=np.int64)
            if not moved:
                break
        return points, heights

    def _neighbours(self, point: Array, rng: np.random.Generator) -> Array:
        """Points that differ in one gene that acts: some values near a number, and every other choice."""
        acts = self.marked(point[None])[0] != self._marks
        near = []
        for i in np.flatnonzero(acts):
            if i < self._numbers:
                values = np.abs(point[i] + REACH * rng.standard_normal(NEIGHBOURS)) % 2
                values = np.where(values > 1, 2 - values, values)  # reflected at the bounds
            else:
                count = self._counts[i - self._numbers]
                values = np.array([other for other in range(count) if other != point[i]], dtype=np.float64)
            rows = np.repeat(point[None], len(values), axis=0)
            rows[:, i] = values
            near.append(rows)
        rows = np.vstack(near) if near else point[None].copy()  # nothing acts: it is its own neighbour
        rows[:, : self._numbers] = self._coordinates.snapped(rows[:, : self._numbers])
        return rows


class _Forest(RandomForest):
    def _impute_inactive(self, X: Array) -> Array:
        """What does not act is marked already."""
        return X


def log_scaled(costs: Array) -> Array:
    """Costs as SMAC3's forest learns them: the logarithm of their place between the best and the worst.

    Zero is as far below the best as the fifth percentile lies above it, so that the best has a logarithm
    (``RunHistoryLogScaledEncoder``).
    """
    lowest, highest = float(costs.min()), float(costs.max())
    if lowest == highest:
        return np.zeros(len(costs))
    zero = 2 * lowest - float(np.percentile(costs, 5)) - 1e-10 * (highest - lowest)
    return np.log((costs - zero) / (highest - zero))


def log_improvement(mean: Array, variance: Array, lowest: float) -> Array:
    """Logarithm of the improvement that is expected of costs whose logarithms are normal, shape ``(points,)``.

    ``e^lowest Phi(v) - e^(variance / 2 + mean) Phi(v - s)`` with ``v = (lowest - mean) / s`` (Watanabe, arXiv
    2411.18095). -inf where rounding leaves no difference.

    Args:
        mean, variance: of the logarithm, shape ``(points, 1)``.
        lowest: of the logarithms, what is to be improved on.
    """
    mean, variance = mean.ravel(), np.maximum(variance.ravel(), 1e-10)  # smac's least
    deviation = np.sqrt(variance)
    at = (lowest - mean) / deviation
    first, second = lowest + log_ndtr(at), 0.5 * variance + mean + log_ndtr(at - deviation)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(second < first, first + np.log1p(-np.exp(second - first)), -np.inf)
