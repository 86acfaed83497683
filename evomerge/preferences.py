"""Preferences among objectives: weights that sum to 1, and the Tchebycheff distances that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest

Array = NDArray[np.float64]

AUGMENTATION = 1e-3
"""What the sum of all distances counts beside the largest (Steuer and Choo 1983): of points that are as good by the
largest, one that no other dominates is the nearest, also where a weight is 0."""

MOST = 10_000
"""Preferences at once."""


def preference(given: Mapping[str, float], names: Sequence[str], key: str) -> tuple[float, ...]:
    """The weights of the objectives `names` in their order, summing to 1.

    Args:
        given: weights by objective, 0 or more, of any sum; those that are not named weigh nothing.
        names: of the objectives.
        key: what messages call it.

    Raises:
        ConfigError: an objective that there is not, a weight that is negative or no number, or none above 0.

    >>> preference({"maths": 3, "chat": 1}, ["chat", "maths", "code"], "--preference")
    (0.25, 0.75, 0.0)
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {given!r}", f"weights by objective: {_example(names)}")
    for name, value in given.items():
        if name not in names:
            raise ConfigError(f"{key} has {name!r}", nearest(str(name), names), "name objectives of the fitness")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{key}.{name} is {value!r}", "a number of 0 or more: directions are the objectives' own")
    largest = max(given.values(), default=0)
    if largest <= 0:
        raise ConfigError(f"{key} weighs nothing", "one weight above 0 at least", f"as in {_example(names)}")
    shares = [float(given.get(name, 0)) / largest for name in names]  # first, so that no sum is beyond all numbers
    return tuple(share / sum(shares) for share in shares)


def read_preference(text: str, names: Sequence[str], key: str) -> tuple[float, ...]:
    """As `preference`, of ``maths=0.7,chat=0.3``."""
    given: dict[str, float] = {}
    for part in text.split(","):
        name, assigned, value = (word.strip() for word in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not assigned or not name or math.isnan(number):
            raise ConfigError(f"{key} has {part.strip()!r}", "NAME=WEIGHT, with commas between", _example(names))
        if name in given:
            raise ConfigError(f"{key} names {name!r} twice", "each objective once")
        given[name] = number
    return preference(given, names, key)


def lattice(objectives: int, most: int) -> Array:
    """The finest simplex lattice of at most so many points: weights that are multiples of 1/H and sum to 1.

    Das and Dennis, "Normal-boundary intersection" (1998), as MOEA/D has it; H divisions make C(H + k - 1, k - 1) points
    for k objectives. The corners, which weigh one objective alone, are always there.

    Args:
        objectives: k, 1 or more.
        most: k or more.

    Returns:
        Of shape ``(points, objectives)``, in lexicographic order, the first objective's largest weight first.

    >>> lattice(2, 4)[:, 0].round(2).tolist()
    [1.0, 0.67, 0.33, 0.0]
    """
    if objectives == 1:
        return np.ones((most, 1))
    divisions = 1
    while math.comb(divisions + objectives, objectives - 1) <= most:
        divisions += 1
    points = []
    for bars in combinations(range(divisions + objectives - 1), objectives - 1):
        edges = (-1, *bars, divisions + objectives - 1)
        points.append([after - before - 1 for before, after in pairwise(edges)])
    return np.array(points[::-1], dtype=np.float64) / divisions


def drawn(objectives: int, count: int, seed: int) -> Array:
    """Weights drawn from Dirichlet(1), uniformly among those that sum to 1; of shape ``(count, objectives)``."""
    return np.random.default_rng([seed, objectives]).dirichlet(np.ones(objectives), size=count)


def named_or_lattice(wanted: object, names: Sequence[str], key: str) -> Array:
    """Preferences as a configuration gives them, of shape ``(preferences, objectives)``.

    Args:
        wanted: how many at most, for a lattice; or a list of weights by objective.
        names: of the objectives.
        key: what messages call it.

    Raises:
        ConfigError: fewer than there are objectives, too many, or weights that are none.
    """
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not len(names) <= wanted <= MOST:
            raise ConfigError(
                f"{key} is {wanted}",
                f"{len(names)} to {MOST:,}: a lattice has one for each objective ({', '.join(names)}) at least",
                "or a list of weights by objective",
            )
        return lattice(len(names), wanted)
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not 0 < len(wanted) <= MOST:
        given = f"[{{{_example(names, ': ').replace(',', ', ')}}}, ...]"
        raise ConfigError(f"{key} is {wanted!r}", f"a number, or a list of weights by objective: {given}")
    rows = [preference(each, names, f"{key}[{place}]") for place, each in enumerate(wanted)]
    return np.array(rows, dtype=np.float64)


def scale_of(gains: Array, ideal: Array) -> Array:
    """What is 1 of each objective: from the ideal down to the worst of those that no other dominates.

    Args:
        gains: of shape ``(points, objectives)``, larger is better; one point at least.
        ideal: of shape ``(objectives,)``.

    Returns:
        Of shape ``(objectives,)``; 1 where that is nothing.
    """
    better = (gains[:, None] >= gains).all(axis=2) & (gains[:, None] > gains).any(axis=2)
    span = ideal - gains[~better.any(axis=0)].min(axis=0)
    return np.where(span > 0, span, 1.0)


def distances(gains: Array, weights: Array, ideal: Array, scale: Array) -> Array:
    """How far points are from the ideal, by each preference: ``max_k w_k d_k + 0.001 sum_k d_k``, the augmented
    Tchebycheff distance (Steuer and Choo 1983) with ``d_k = (ideal_k - gain_k) / scale_k``.

    The maximum is over the objectives that weigh something: points beyond the ideal, whose distances are negative, are
    told apart as well.

    Args:
        gains: of shape ``(points, objectives)``.
        weights: of shape ``(preferences, objectives)``.
        ideal, scale: of shape ``(objectives,)``.

    Returns:
        Of shape ``(points, preferences)``.
    """
    missed = (ideal - gains) / scale
    weighed = np.where(weights > 0, weights * missed[:, None], -np.inf)
    found: Array = weighed.max(axis=2) + AUGMENTATION * missed.sum(axis=1, keepdims=True)
    return found


def nearest_by(gains: Array, weights: Sequence[float]) -> int:
    """Which of these points is nearest to the best of all in each objective, by one preference; of equals the first.

    >>> nearest_by(np.array([[0.9, 0.1], [0.6, 0.7], [0.1, 0.9]]), [0.5, 0.5])
    1
    """
    ideal = gains.max(axis=0)
    return int(np.argmin(distances(gains, np.array([weights]), ideal, scale_of(gains, ideal))[:, 0]))


def written(weights: Sequence[float], names: Sequence[str]) -> str:
    """A preference as a command line takes it, those that weigh nothing left out."""
    return ",".join(f"{name}={weight:.3g}" for name, weight in zip(names, weights, strict=True) if weight > 0)


def _example(names: Sequence[str], assigned: str = "=") -> str:
    values = [0.7, *[0.3] * (len(names) - 1)] if len(names) > 1 else [1.0]
    return ",".join(f"{name}{assigned}{value}" for name, value in zip(names, values, strict=True))
