"""Independent readings of the methods that choose between task vectors element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, by_magnitude, float32, paper


def elements(x: Sequence[Array], base: Array, weight: Sequence[float]) -> list[list[float]]:
    """The weighted task vectors' values by element, of inputs with a weight."""
    tasks = [float32(float32(v - base) * np.float32(w)).reshape(-1) for v, w in zip(x, weight, strict=True) if w != 0]
    return [[float(task[e]) for task in tasks] for e in range(base.size)]


def added(base: Array, changes: Sequence[float], factor: float) -> Array:
    """A base with a change of every element."""
    return base + factor * np.array(changes, dtype=np.float64).reshape(base.shape)


@paper
def magmax(x: Sequence[Array], base: Array, *, weight: Any, lambda_: float) -> Array:
    changes = [max(given, key=lambda v: (abs(v), v), default=0.0) for given in elements(x, base, weight)]
    return added(base, changes, lambda_)


@paper
def emr(x: Sequence[Array], base: Array, *, weight: Any, lambda_: float) -> Array:
    changes = []
    for given in elements(x, base, weight):
        sign = 1 if sum(given) > 0 else -1
        changes.append(sign * max((v * sign for v in given if v * sign > 0), default=0.0))
    return added(base, changes, lambda_)


@paper
def delta_guided(x: Sequence[Array], base: Array, *, weight: Any, power: int, lambda_: float) -> Array:
    changes = []
    for given in elements(x, base, weight):
        shares = [abs(v) ** power for v in given]
        total = sum(shares)
        changes.append(sum(s * v for s, v in zip(shares, given, strict=True)) / total if total else 0.0)
    return added(base, changes, lambda_)


@paper
def consensus(x: Sequence[Array], base: Array, *, weight: Any, selectivity: Any, k: int, lambda_: float) -> Array:
    limits = [limit for limit, w in zip(selectivity, weight, strict=True) if w != 0]
    changes = []
    for given in elements(x, base, weight):
        total = sum(given)
        masks = [abs(v) >= limit * abs(total - v) for v, limit in zip(given, limits, strict=True)]
        changes.append(total if sum(masks) >= min(k, len(given)) else 0.0)
    return added(base, changes, lambda_)


def spread(values: Sequence[float], low: float, high: float) -> list[float]:
    """Between two bounds as 0 to 1; of equal bounds 1 for what reaches them and is positive."""
    if high > low:
        return [(min(max(v, low), high) - low) / (high - low) for v in values]
    return [float(v >= high and v > 0) for v in values]


@paper
def pcb(
    x: Sequence[Array], base: Array, *, weight: Any, density: float, clip: float, lambda_: float, scope: str
) -> Array:
    weights = [w for w in weight if w != 0]
    tasks = [[float(t) for t in float32(v - base).reshape(-1)] for v, w in zip(x, weight, strict=True) if w != 0]
    n = base.size
    if not tasks or not n or density == 0:
        return base
    if len(tasks) == 1:
        return added(base, tasks[0], lambda_ * weights[0])
    sizes = []
    for t, task in enumerate(tasks):
        ordered = sorted(abs(v) for v in task)
        low, high = ordered[int(n * clip)], ordered[max(int(n * clip), int(n * (1 - clip) - 1))]
        sizes.append(spread([abs(v) for v in task], low, high))
        tasks[t] = [math.copysign(min(max(abs(v), low), high), v) if v else 0.0 for v in task]
    shares = []
    for own, size in zip(tasks, sizes, strict=True):
        scores = []
        for e in range(n):
            signs = [math.copysign(other[e], task[e]) for task, other in zip(tasks, sizes, strict=True)]
            mine = math.copysign(size[e], own[e])
            scores.append(math.exp(len(tasks) * size[e] ** 2) * sum(math.tanh(mine * other) for other in signs))
        scores = [float(np.float32(s * math.exp(-len(tasks)))) for s in scores]
        ordered = sorted(scores)
        shares.append(spread(scores, ordered[min(int(n * (1 - density)), n - 1)], ordered[-1]))
    changes = []
    for e in range(n):
        total = sum(share[e] for share in shares)
        parts = [w * share[e] * task[e] for w, share, task in zip(weights, shares, tasks, strict=True)]
        changes.append(sum(parts) / total if total > 0 else 0.0)
    return added(base, changes, lambda_)


def softmax(numbers: Sequence[float]) -> list[float]:
    powers = [math.exp(v - max(numbers)) for v in numbers]
    return [v / sum(powers) for v in powers]


def scored(moved: list[list[float]], above_average: float, calibration: float, exact: bool) -> list[list[float]]:
    """Scores by model and vector: the softmax over models, of what is above the model's average `calibration`."""
    count = len(moved[0])
    if exact:  # ranks
        moved = [[float(sorted(range(count), key=own.__getitem__).index(e)) for e in range(count)] for own in moved]
    important = [[v > above_average * math.fsum(own) / count for v in own] for own in moved]
    shares = [softmax([own[e] / (count if exact else 1) for own in moved]) for e in range(count)]
    return [[calibration if own[e] else shares[e][i] for e in range(count)] for i, own in enumerate(important)]


@paper
def widen(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    above_average: float,
    calibration: float,
    along: str,
    lambda_: float,
) -> Array:
    used = [(v, w * lambda_) for v, w in zip(x, weight, strict=True) if w != 0]
    result = base.copy()
    if not used or not base.size:
        return result
    if base.ndim < 2:
        moved = [[float(v) for v in np.abs(v - base).reshape(-1)] for v, _ in used]
        for (v, w), scores in zip(used, scored(moved, above_average, calibration, exact=False), strict=True):
            result += w * (v - base) * np.reshape(scores, base.shape)
        return result
    last = base.shape[-1]

    def columns(v: Array) -> Array:
        return v.reshape(len(v), -1) if along == "columns" else v.reshape(-1, last).T

    def angle(u: Array, v: Array) -> float:
        lengths = math.sqrt(u @ u), math.sqrt(v @ v)
        if min(lengths) == 0:
            return float(max(lengths) > 0)
        apart = u / lengths[0] - v / lengths[1]
        return float(apart @ apart) / 2

    below = columns(base)
    lengths = [
        [abs(math.sqrt(u @ u) - math.sqrt(v @ v)) for u, v in zip(columns(m).T, below.T, strict=True)] for m, _ in used
    ]
    angles = [[angle(u, v) for u, v in zip(columns(m).T, below.T, strict=True)] for m, _ in used]
    both = [scored(moved, above_average, calibration, exact=True) for moved in (lengths, angles)]
    changes = np.zeros_like(below)
    for i, (m, w) in enumerate(used):
        changes += w * (columns(m) - below) * [(a + b) / 2 for a, b in zip(both[0][i], both[1][i], strict=True)]
    return base + (changes if along == "columns" else changes.T).reshape(base.shape)


@paper
def localize_and_stitch(
    x: Sequence[Array], base: Array, *, weight: Any, density: Any, lambda_: float, scope: str
) -> Array:
    total, overlaps = np.zeros(base.size), np.zeros(base.size)
    for v, w, d in zip(x, weight, density, strict=True):
        if w != 0:
            task = float32(v - base)
            kept = by_magnitude(task)[: max(1, int(d * task.size)) if d > 0 else 0]
            total[kept] += w * task.reshape(-1)[kept]
            overlaps[kept] += 1
    return added(base, list(total / np.maximum(overlaps, 1)), lambda_)
