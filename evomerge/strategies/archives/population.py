"""A population under resource competition: the core of M2N2, on a matrix of per-item scores.

Abrantes, Lange, Tang, "Competition and Attraction Improve Model Fusion" (arXiv 2508.16204), section 3. Members
are rows; what they are made of (genomes, arrays of weights) is the caller's, who keeps it by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.strategies.archives.competition import ROOM, attract, compete, enter, pick, remove_worst

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
        epsilon: keeps the divisor above zero; 0 divides items that nobody solves by one instead, as the paper's public
            code does.
        capacity: ``max`` is the item's largest score, ``one`` is 1, ``auto`` the paper's rule: 1 while all scores are
            0 or 1, else the largest.
        attraction: ``linear`` is g(A, B); ``alpha`` divides by ``z_j^alpha`` as the public code does; ``off`` draws the
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
        self._room = np.empty((ROOM, items))
        self._share = np.empty(items)
        # What attraction divides by is the same unless the paper's formula and alpha tell them apart.
        self._needs = np.empty(items) if self._alpha != 1 and attraction == "linear" else self._share
        self._fitness: Array | None = None

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
        self._fitness = None
        last = self._count
        self._write(last, scores)
        self._born[last], self._births = self._births, self._births + 1
        if last < self.size:
            self._count += 1
            return last
        fitness = self._compete(last + 1)
        worst = int(remove_worst(self._rows, self._born, self._total, self._binary, fitness, _EQUAL))
        return worst if worst != last else None

    def fitness(self) -> Array:
        """The members' fitness, of shape ``(len(self),)``: not to be written to."""
        if self._fitness is None:
            self._fitness = self._compete(self._count)
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
        if first is None:
            first = int(rng.integers(self._count))
        if self._count == 1:
            return first, None
        if self._attraction == "off" and not self._distinct:
            second = draw(fitness, rng)
            return first, int(rng.integers(self._count)) if second is None else second
        second = None if self._attraction == "off" else draw(self.attraction(first), rng, first)
        if second is None:
            second = draw(fitness, rng, first)
        return first, _other(first, self._count, rng) if second is None else second

    def mates(self, rng: np.random.Generator) -> tuple[int, int | None]:
        """Two different members, all pairs equally likely; ``None`` for the second where there is but one."""
        assert self._count, "an empty population has no parents"
        first = int(rng.integers(self._count))
        return first, _other(first, self._count, rng) if self._count > 1 else None

    def attraction(self, first: int) -> Array:
        """How much every member attracts `first`, of shape ``(len(self),)``."""
        self.fitness()
        pull = np.empty(self._count)
        attract(self._rows, first, self._needs, self._room, pull)
        return pull

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
        self._fitness = None

    def _write(self, row: int, scores: NDArray[Any]) -> None:
        """One member's scores, and what kind all of them are."""
        own = self._rows[row]
        own[:] = scores
        if enter(own, self._total):  # as they should be
            return
        finite = np.isfinite(own)
        if not finite.all():
            lowest = self._rows[:row].min(0, initial=0.0)
            own[~finite] = lowest[~finite]
        np.clip(own, 0.0 if self._shift == "never" else -_LARGEST, _LARGEST, out=own)
        if self._binary:
            self._binary = bool((own * own == own).all())
        if self._binary:
            self._total += own
        self._negative = self._negative or (not self._binary and bool((own < 0).any()))

    def _compete(self, count: int) -> Array:
        """The fitness of the first `count` rows; what attraction needs is kept."""
        shift = 2 if self._shift == "always" else int(self._shift == "auto" and self._negative)
        largest = self._capacity == "max" or (self._capacity == "auto" and not self._binary)
        fitness = np.empty(count)
        compete(
            self._rows,
            self._total,
            self._binary,
            shift,
            self._alpha,
            self._epsilon,
            largest,
            self._room,
            self._share,
            self._needs,
            fitness,
        )
        return fitness


_LARGEST = 1e150  # products of two scores stay finite


def draw(weights: Array, rng: np.random.Generator, without: int = -1) -> int | None:
    """An index, drawn in proportion to nonnegative weights; ``None`` where all are zero.

    Args:
        weights: float64.
        rng: asked for one number.
        without: an index that is left out.
    """
    at: int = pick(weights, without, rng.random())
    return None if at < 0 else at


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
