"""Selection, crossover and mutation of points of the unit cube and of numbers of choices."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

ALIKE = 1e-14
"""Coordinates nearer than this are the same to `sbx` (Deb's own code for NSGA-II has this constant)."""


def tournament(gains: Array, size: int, rng: np.random.Generator) -> int:
    """The best of `size` different members drawn at random; of equals, the one drawn first.

    Args:
        gains: of shape ``(members,)``, larger is better.
    """
    drawn = rng.choice(len(gains), size=min(size, len(gains)), replace=False)
    return int(drawn[int(np.argmax(gains[drawn]))])


def sbx(a: Array, b: Array, eta: float, rng: np.random.Generator) -> Array:
    """A child of two points by simulated binary crossover, within the unit cube.

    Deb and Agrawal, "Simulated binary crossover for continuous search space" (Complex Systems 9, 1995), in the form
    of Deb's NSGA-II code: a gene is crossed with probability 1/2, and its spread is that of a distribution cut off
    at the bounds. Of the two children that the definition makes, each gene comes from either with equal chance; a
    gene that is not crossed is `a`'s, bit for bit.

    Args:
        a, b: of shape ``(n,)``; neither is changed.
        eta: distribution index; children are nearer to their parents the larger it is.
    """
    crossed, upper, u = rng.random(len(a)) < 0.5, rng.random(len(a)) < 0.5, rng.random(len(a))
    low, high = np.minimum(a, b), np.maximum(a, b)
    apart = high - low
    crossed &= apart > ALIKE
    apart = np.where(crossed, apart, 1.0)
    beta = 1 + 2 * np.where(upper, 1 - high, low) / apart
    alpha = 2 - beta ** -(eta + 1)
    spread = np.where(u <= 1 / alpha, u * alpha, 1 / (2 - np.minimum(u * alpha, 2 - ALIKE))) ** (1 / (eta + 1))
    child = 0.5 * (low + high + np.where(upper, spread, -spread) * apart)
    return np.where(crossed, np.clip(child, 0.0, 1.0), a)


def polynomial(x: Array, chosen: NDArray[np.bool_], eta: float, steps: Array, rng: np.random.Generator) -> Array:
    """`x` with its `chosen` genes mutated by a polynomial distribution, within the unit cube.

    Deb and Goyal, "A combined genetic adaptive search (GeneAS) for engineering design" (1996), in the form of Deb's
    NSGA-II code, which respects the bounds.

    Args:
        x: of shape ``(n,)``; not changed.
        chosen: of shape ``(n,)``.
        eta: distribution index; mutations are smaller the larger it is.
        steps: of shape ``(n,)``: genes on a grid and whole numbers move by at least one step, or the mutation would
            be lost when they are rounded; 0 for other genes.
    """
    u = rng.random(len(x))
    power = eta + 1
    down = (2 * u + (1 - 2 * u) * (1 - x) ** power) ** (1 / power) - 1
    up = 1 - (2 * (1 - u) + 2 * (u - 0.5) * x**power) ** (1 / power)
    change = np.where(u < 0.5, down, up)
    change = np.where(np.abs(change) < steps, np.copysign(steps, change), change)
    moved = x + change
    # A step beyond the edge is taken to the other side.
    moved = np.where((steps > 0) & ((moved < 0) | (moved > 1)), x - change, moved)
    return np.where(chosen, np.clip(moved, 0.0, 1.0), x)


class Parent(Protocol):
    """Who may be crossed: coordinates, choices and the candidate's number."""

    @property
    def point(self) -> Array:
        """Coordinates."""

    @property
    def choices(self) -> Choices:
        """Of each variable."""

    @property
    def id(self) -> int:
        """The candidate's."""


def crossed(
    a: Parent, b: Parent, rate: float, eta: float, rng: np.random.Generator
) -> tuple[Array, Choices, tuple[int, ...]]:
    """A child of two parents with probability `rate`, else a copy of the first; and whose child it is.

    Coordinates by `sbx`, choices by `uniform`. A parent with itself has copies.
    """
    if b is a or rng.random() >= rate:
        return a.point, a.choices, (a.id,)
    return sbx(a.point, b.point, eta, rng), uniform(a.choices, b.choices, rng), (a.id, b.id)


def uniform(a: Choices, b: Choices, rng: np.random.Generator) -> Choices:
    """Every choice from either parent with equal chance."""
    return np.where(rng.random(len(a)) < 0.5, a, b)


def reset(x: Choices, chosen: NDArray[np.bool_], counts: NDArray[np.int64], rng: np.random.Generator) -> Choices:
    """`x` with its `chosen` choices drawn anew among the others.

    Args:
        counts: how many choices each variable has; two or more.
    """
    other = (x + rng.integers(1, np.maximum(counts, 2))) % np.maximum(counts, 2)
    return np.where(chosen, other, x)


def mutated(
    x: Array,
    choices: Choices,
    rate: float | None,
    eta: float,
    steps: Array,
    counts: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Array, Choices]:
    """Coordinates by `polynomial` and choices by `reset`, every gene with probability `rate`; exactly one for ``None``.

    Args:
        x: of shape ``(n,)``; not changed.
        choices: of shape ``(m,)``; not changed.
        eta, steps: of `polynomial`.
        counts: of `reset`.
    """
    chosen = rng.random(len(x) + len(choices)) < (0.0 if rate is None else rate)
    if rate is None:
        chosen[int(rng.integers(len(chosen)))] = True
    return polynomial(x, chosen[: len(x)], eta, steps, rng), reset(choices, chosen[len(x) :], counts, rng)
