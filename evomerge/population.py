"""A population under resource competition: the core of M2N2, on a matrix of per-item scores.

Abrantes, Lange, Tang, "Competition and Attraction Improve Model Fusion" (arXiv 2508.16204), section 3. Members
are rows; what they are made of (genomes, arrays of weights) is the caller's, who keeps it by row.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest

Array = NDArray[np.float64]
Capacity = Literal["auto", "one", "max"]
Attraction = Literal["linear", "alpha", "off"]
Shift = Literal["auto", "always", "never"]

_EQUAL = 1e-12  # sums of the same numbers in another order differ by less, relative to the largest
_CHOICES = {
    "capacity": ("auto", "one", "max"),
    "attraction": ("linear", "alpha", "off"),
    "shift": ("auto", "always", "never"),
}


class Population:
    """Up to `size` members that share the points of every item.

    With ``s_ij`` the score of member i on item j, ``z_j = sum_i s_ij`` and ``c_j`` the item's capacity, the fitness is
    ``f_i = sum_j c_j s_ij / (z_j^alpha + epsilon)`` and the attraction of a parent A to a mate B is
    ``g(A, B) = sum_j c_j max(s_Bj - s_Aj, 0) / (z_j + epsilon)``.

    Rows ``0 .. len(self) - 1`` are the members, in no particular order. Scores that are NaN count as the lowest.

    Args:
        size: how many members survive; a child is compared with them before one is removed.
        items: how many scores each has.
        alpha: how strongly members compete; 0 is a genetic algorithm.
        epsilon: as above; 0 divides items that nobody solves by one instead, as the public code of the paper does.
        capacity: ``max`` is the item's largest score, ``one`` is 1, ``auto`` the paper's rule: 1 while all scores are
            0 or 1, else the largest.
        attraction: ``linear`` as above; ``alpha`` divides by ``z_j^alpha`` as the public code does; ``off`` draws the
            mate by fitness.
        shift: ``always`` subtracts the population's lowest score of every item first (the paper's choice for scores
            that all models reach), ``auto`` where that is negative, as shares must not be; ``never`` counts negative
            scores as 0.
        distinct: a parent's mate is another member; otherwise one drawn by fitness may be the parent itself, as in
            the public code.

    Raises:
        ConfigError: an argument that cannot be.
    """

    def __init__(
        self,
        size: int,
        items: int,
        *,
        alpha: float = 1.0,
        epsilon: float = 1e-6,
        capacity: Capacity = "auto",
        attraction: Attraction = "linear",
        shift: Shift = "auto",
        distinct: bool = True,
    ) -> None:
        check_options(size, alpha, epsilon, capacity=capacity, attraction=attraction, shift=shift)
        if items < 1:
            raise ConfigError(f"a population was given scores of {items} items", "1 or more")
        self.size, self.items = size, items
        self._alpha, self._epsilon = float(alpha), float(epsilon)
        self._capacity, self._attraction, self._shift = capacity, attraction, shift
        self._distinct = distinct
        self._count = self._births = 0
        self._rows = np.zeros((size + 1, items))
        self._born = np.zeros(size + 1, dtype=np.int64)
        self._total = np.zeros(items)
        self._binary, self._negative = True, False
        self._room = np.empty((size + 1, items))
        self._fitness: Array | None = None
        self._needs: Array | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def scores(self) -> Array:
        """The members' scores, of shape ``(len(self), items)``: a read-only view."""
        view = self._rows[: self._count]
        view.flags.writeable = False
        return view

    def add(self, scores: NDArray[Any]) -> int | None:
        """Take in a member; where there is no room, the one of the lowest fitness among all, itself included, goes.

        Of equals the oldest goes.

        Returns:
            The row that it takes, which was free or the removed member's; ``None`` where it is itself removed.

        Raises:
            ConfigError: scores of another number of items.
        """
        if np.shape(scores) != (self.items,):
            raise ConfigError(f"scores of shape {np.shape(scores)} were given", f"{self.items} items, as before")
        self._fitness = self._needs = None
        last = self._count
        self._write(last, scores)
        self._born[last], self._births = self._births, self._births + 1
        self._sum(last, last + 1)
        if last < self.size:
            self._count += 1
            return last
        fitness = self._shares(last + 1)[1].tolist()  # of so few, lists are faster than arrays
        limit = min(fitness) + _EQUAL * max(fitness)
        born = self._born[: last + 1].tolist()
        worst = min((row for row, own in enumerate(fitness) if own <= limit), key=born.__getitem__)
        if self._binary:
            self._total -= self._rows[worst]
        if worst != last:
            self._rows[worst], self._born[worst] = self._rows[last], self._born[last]
        self._sum(None, last)
        return worst if worst != last else None

    def fitness(self) -> Array:
        """The members' fitness, of shape ``(len(self),)``: not to be written to."""
        if self._fitness is None:
            self._needs, self._fitness = self._shares(self._count)
        return self._fitness

    def parents(self, rng: np.random.Generator) -> tuple[int, int | None]:
        """Draw a parent by fitness and its mate by attraction.

        A parent that nobody attracts (it is the best on every item) takes one of the others by fitness. Where all
        fitness is zero, all are equally likely.

        Returns:
            Two rows, different ones unless `distinct` is off; ``None`` for the second where there is but one member.
        """
        assert self._count, "an empty population has no parents"
        fitness = self.fitness()
        first = draw(fitness, rng)
        if self._count == 1:
            return first, None
        if self._attraction == "off" and not self._distinct:
            return first, draw(fitness, rng)
        pull = fitness if self._attraction == "off" else self.attraction(first)
        pull = pull.copy()
        pull[first] = 0.0
        if not pull.any():
            pull = fitness.copy()
            pull[first] = 0.0
        if not pull.any():
            return first, _other(first, self._count, rng)
        return first, draw(pull, rng)

    def mates(self, rng: np.random.Generator) -> tuple[int, int | None]:
        """Two different members, all pairs equally likely; ``None`` for the second where there is but one."""
        assert self._count, "an empty population has no parents"
        first = int(rng.integers(self._count))
        return first, _other(first, self._count, rng) if self._count > 1 else None

    def attraction(self, first: int) -> Array:
        """How much every member attracts `first`, of shape ``(len(self),)``."""
        self.fitness()
        needs, rows = self._needs, self._rows[: self._count]
        assert needs is not None
        if self._binary:  # the same: max(b - a, 0) is b (1 - a)
            return np.asarray(rows @ (needs * (1.0 - rows[first])))
        gaps = np.subtract(rows, rows[first], out=self._room[: self._count])
        return np.asarray(np.maximum(gaps, 0.0, out=gaps) @ needs)

    def state_dict(self) -> dict[str, Any]:
        """The scores and ages as arrays, and what follows from the members that are gone."""
        return {
            "scores": self._rows[: self._count].copy(),
            "born": self._born[: self._count].copy(),
            "births": self._births,
            "binary": self._binary,
            "negative": self._negative,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the members of `state`.

        Raises:
            ConfigError: they do not fit into this population.
        """
        scores = np.asarray(state["scores"], dtype=np.float64)
        if scores.ndim != 2 or len(scores) > self.size or scores.shape[1] != self.items:
            raise ConfigError(
                f"the saved population has scores of shape {scores.shape}",
                f"at most {self.size} members with {self.items} items",
                "a search resumes with the settings that it began with",
            )
        self._count, self._births = len(scores), int(state["births"])
        self._rows[: self._count], self._born[: self._count] = scores, state["born"]
        self._binary, self._negative = bool(state["binary"]), bool(state["negative"])
        self._total = self._rows[: self._count].sum(0)
        self._fitness = self._needs = None

    def _write(self, row: int, scores: NDArray[Any]) -> None:
        """One member's scores, and what kind all of them are."""
        own = self._rows[row]
        own[:] = scores
        if ((own == 0) | (own == 1)).all():  # as they should be
            return
        finite = np.isfinite(own)
        if not finite.all():
            lowest = self._rows[:row].min(0, initial=0.0)
            own[~finite] = lowest[~finite]
        np.clip(own, 0.0 if self._shift == "never" else -_LARGEST, _LARGEST, out=own)
        if self._binary:
            self._binary = bool((own * own == own).all())
        self._negative = self._negative or (not self._binary and bool((own < 0).any()))

    def _sum(self, row: int | None, count: int) -> None:
        """Bring the items' totals up to date, by a new row where that is exact; afresh where sums are rounded."""
        if not self._binary:
            self._total = self._rows[:count].sum(0)
        elif row is not None:
            self._total += self._rows[row]

    def _shares(self, count: int) -> tuple[Array, Array]:
        """``c_j / (z_j + epsilon)`` for attraction, and the fitness of the first `count` rows."""
        rows, total, floor = self._rows[:count], self._total, None
        if self._shift == "always" or (self._shift == "auto" and self._negative):
            floor = rows.min(0)
            if self._shift == "auto":
                np.minimum(floor, 0.0, out=floor)
            total = np.maximum(total - count * floor, 0.0)
        power = total if self._alpha == 1 else total**self._alpha
        capacity: Array | float = 1.0
        if self._capacity == "max" or (self._capacity == "auto" and not self._binary):
            capacity = rows.max(0)
            if floor is not None:
                capacity = capacity - floor
        share = capacity / self._positive(power)
        fitness = rows @ share
        if floor is not None:
            fitness -= floor @ share
        np.maximum(fitness, 0.0, out=fitness)
        same = self._alpha == 1 or self._attraction == "alpha"
        return share if same else capacity / self._positive(total), fitness

    def _positive(self, divisor: Array) -> Array:
        if self._epsilon:
            return divisor + self._epsilon
        # Of scores that are 0 or 1 none is between: the larger of the two is the same, in a third of the time.
        return np.maximum(divisor, 1.0) if self._binary else np.where(divisor == 0, 1.0, divisor)


_LARGEST = 1e150  # products of two scores stay finite


def draw(weights: Array, rng: np.random.Generator) -> int:
    """An index, drawn in proportion to nonnegative weights; all equally likely where all are zero."""
    sums = list(accumulate(weights.tolist()))
    if not sums[-1] > 0:
        return int(rng.integers(len(sums)))
    at = bisect_right(sums, rng.random() * sums[-1])
    return at if at < len(sums) else int(np.flatnonzero(weights)[-1])


def check_options(size: int, alpha: float, epsilon: float, **words: str) -> None:
    """Raise `ConfigError` for arguments of `Population` that cannot be, naming the key."""
    if isinstance(size, bool) or size < 1:
        raise ConfigError(f"strategy.size is {size}", "1 or more")
    for name, value in {"alpha": alpha, "epsilon": epsilon}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"strategy.{name} is {value}", "0 or more")
    for name, word in words.items():
        if word not in _CHOICES[name]:
            raise ConfigError(f"strategy.{name} is {word!r}", nearest(word, _CHOICES[name]))


def _other(first: int, count: int, rng: np.random.Generator) -> int:
    """Any row but the first, all equally likely."""
    at = int(rng.integers(count - 1))
    return at + (at >= first)
