"""The front of functions that cost nothing: NSGA-III on arrays, for fits that stand for evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats.qmc import Sobol

from evomerge.preferences import lattice
from evomerge.strategies.variation.coordinates import Coordinates
from evomerge.strategies.variation.operators import polynomial, sbx

Array = NDArray[np.float64]

ETA = 20.0
"""Distribution index of crossover and of mutation (MAP, arXiv 2406.07529, and its public code)."""

MARGIN = 0.1
"""How far below the front's worst the volume begins that points are counted by, in units of its range."""

_SAMPLES = 12  # 2^12 of them measure a volume
_BESIDE = 1e-6  # weight of the other objectives where an extreme point is looked for (Deb and Jain, equation 4)


def front_of(
    gains: Callable[[Array], Array],
    known: Array,
    coordinates: Coordinates,
    *,
    popsize: int,
    generations: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Points of the unit cube that no other one which was looked at beats, and their gains.

    NSGA-III (Deb and Jain, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based
    Nondominated Sorting Approach", IEEE Transactions on Evolutionary Computation 18, 2014), its parents drawn at
    random, SBX and polynomial mutation of one gene on average. It begins with as many random points as a population
    has, and those that are known and best by a weighted sum of the gains, for each reference direction one.

    Args:
        gains: of points ``(k, n)``, larger is better, ``(k, objectives)``; two objectives or more.
        known: shape ``(k, n)``; one at least.
        coordinates: of the genes, numbers all: points stay on their grids.
        popsize: of a generation, and how many reference directions there are at most.
        generations: how many.
        rng: of all that is random here.

    Returns:
        Of shapes ``(points, n)`` and ``(points, objectives)``.
    """
    genes = known.shape[1]
    told = gains(known)
    directions, low = lattice(told.shape[1], popsize), told.min(axis=0)
    sums = (told - low) / np.where(told.max(axis=0) > low, told.max(axis=0) - low, 1.0) @ directions.T
    new = np.vstack([known[np.unique(sums.argmax(axis=0))], coordinates.snapped(rng.random((popsize, genes)))])
    points, best, widths = new[:0], new[:0], np.tile(coordinates.steps, popsize)
    for generation in range(generations + 1):
        if generation:
            a, b = (points[rng.integers(len(points), size=popsize)].ravel() for _ in range(2))
            chosen = rng.random(len(widths)) < 1 / genes
            new = polynomial(sbx(a, b, ETA, rng), chosen, ETA, widths, rng).reshape(popsize, genes)
            new = coordinates.snapped(new)
        points, best = _distinct([points, new]), _distinct([best, new])
        points = points[survivors(gains(points), popsize, directions, rng)]
        best = best[ranks(gains(best), most=1) == 0]
    return best, gains(best)


def _distinct(parts: Sequence[Array]) -> Array:
    """All rows, each once, in their order."""
    rows = np.vstack(parts)
    return rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]


def most_volume_first(gains: Array, known: Array, most: int) -> list[int]:
    """Rows each of which adds the most hypervolume to what is known and those before it; none that adds nothing.

    The volume is that above a tenth of the front's range below its worst, counted by a Sobol sequence.

    Args:
        gains: of a front, shape ``(points, objectives)``, larger is better.
        known: of what was proposed before, likewise.
        most: how many rows at most.
    """
    low, high = gains.min(axis=0), gains.max(axis=0)
    low = low - MARGIN * np.where(high > low, high - low, 1.0)
    places = low + (high - low) * Sobol(gains.shape[1], scramble=False).random_base2(_SAMPLES)
    open_ones = np.ones(len(places), dtype=np.bool_)
    for row in known:
        open_ones &= (row < places).any(axis=1)
    below = np.ones((len(gains), len(places)), dtype=np.bool_)
    for column, own in zip(gains.T, places.T, strict=True):
        below &= column[:, None] >= own
    order: list[int] = []
    while len(order) < most:
        added = (below & open_ones).sum(axis=1)
        row = int(added.argmax())
        if not added[row]:
            break
        order.append(row)
        open_ones &= ~below[row]
    return order


def ranks(gains: Array, most: int | None = None) -> NDArray[np.int64]:
    """How many fronts are before each point's own: 0 where no other point beats it.

    Args:
        gains: shape ``(points, objectives)``, larger is better.
        most: how many fronts are told apart; points of others have -1.
    """
    as_good, better = np.ones((len(gains), len(gains)), dtype=np.bool_), np.zeros((), dtype=np.bool_)
    for column in gains.T:
        as_good &= column[:, None] >= column
        better = better | (column[:, None] > column)
    beats = as_good & better
    found = np.full(len(gains), -1, dtype=np.int64)
    left, rank = np.ones(len(gains), dtype=np.bool_), 0
    while left.any() and rank != most:
        now = left & ~beats[left].any(axis=0)
        found[now] = rank
        left &= ~now
        rank += 1
    return found


def survivors(gains: Array, count: int, directions: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """The points that stay: whole fronts, and of the first that does not fit those whose directions have the fewest.

    Args:
        gains: shape ``(points, objectives)``, larger is better.
        count: how many stay; all where there are no more.
        directions: of references, shape ``(directions, objectives)``.
        rng: for directions that have as many.

    Returns:
        Their numbers, in order.
    """
    rank = ranks(gains)
    size = np.cumsum(np.bincount(rank))
    last = int(np.searchsorted(size, min(count, len(gains))))
    stay, open_ones = np.flatnonzero(rank < last), np.flatnonzero(rank == last)
    room = min(count, len(gains)) - len(stay)
    if room < len(open_ones):
        missed = _normalised(np.vstack([gains[stay], gains[open_ones]]), rank[[*stay, *open_ones]] == 0)
        lines = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        along = missed @ lines.T
        away = np.sqrt(np.maximum(np.square(missed).sum(axis=1, keepdims=True) - np.square(along), 0.0))
        nearest, distance = away.argmin(axis=1), away.min(axis=1)
        taken = np.bincount(nearest[: len(stay)], minlength=len(lines)).astype(np.float64)
        open_ones = open_ones[_fill(room, taken, nearest[len(stay) :], distance[len(stay) :], rng)]
    return np.sort(np.concatenate([stay, open_ones]))


def _fill(
    room: int, taken: Array, nearest: NDArray[np.int64], distance: Array, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Which of the last front stay (algorithm 4): one after the other for the direction that has the fewest.

    Args:
        room: how many.
        taken: how many each direction has; changed here.
        nearest, distance: of each point its direction, and how far from it it is.
        rng: among directions that have as many, and points of one that has some already.
    """
    left, found = np.ones(len(nearest), dtype=np.bool_), list[int]()
    while len(found) < room:
        fewest = np.flatnonzero(taken == taken.min())
        direction = int(fewest[rng.integers(len(fewest))])
        own = np.flatnonzero(left & (nearest == direction))
        if not len(own):
            taken[direction] = np.inf
            continue
        place = int(own[distance[own].argmin()] if taken[direction] == 0 else own[rng.integers(len(own))])
        found.append(place)
        left[place] = False
        taken[direction] += 1
    return np.array(found, dtype=np.int64)


def _normalised(gains: Array, first: NDArray[np.bool_]) -> Array:
    """How far points are from the best of each objective, in units of where the plane through the extremes meets it.

    Where there is no such plane, in units of the first front's range (section IV-C, and what its authors do then).

    Args:
        gains: shape ``(points, objectives)``.
        first: which of them are of the first front, shape ``(points,)``.
    """
    missed = gains.max(axis=0) - gains
    count = missed.shape[1]
    weights = np.where(np.eye(count) > 0, 1.0, _BESIDE)
    extremes = missed[(missed[:, None] / weights).max(axis=2).argmin(axis=0)]
    worst = missed[first].max(axis=0)
    ends = worst
    if np.linalg.matrix_rank(extremes) == count:
        plane = np.linalg.solve(extremes, np.ones(count))
        if (plane > 0).all() and (1 / plane <= missed.max(axis=0) * (1 + 1e-6)).all():
            ends = 1 / plane
    return np.asarray(missed / np.where(ends > 0, ends, 1.0))
