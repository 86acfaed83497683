"""Independent readings of the methods that drop elements of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, by_magnitude, elected, float32, paper, restored, stays, weighted


def crumbs(task: Array, density: float, gamma: float, rescale: bool) -> Array:
    """The magnitudes that follow the largest: dropped from both ends by counting."""
    if density >= 1:
        return task
    kept = int(density * task.size)
    outliers = min(int(gamma * task.size), task.size - kept)
    result = np.zeros(task.size)
    for e in by_magnitude(task)[outliers : outliers + kept]:
        result[e] = task.reshape(-1)[e]
    result = result.reshape(task.shape)
    return restored(result, task) if rescale else result


@paper
def breadcrumbs(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    gamma: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    scope: str,
) -> Array:
    tasks = [crumbs(float32(v - base), d, g, rescale) for v, d, g in zip(x, density, gamma, strict=True)]
    return base + lambda_ * weighted(tasks, weight, normalize)


@paper
def breadcrumbs_ties(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    gamma: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    scope: str,
) -> Array:
    tasks = [crumbs(float32(v - base), d, g, rescale) for v, d, g in zip(x, density, gamma, strict=True)]
    return base + lambda_ * elected(tasks, weight, normalize)


def probabilities(task: Array, density: float, epsilon: float) -> Array:
    """Of staying, linear in the rank of magnitude within a row (MagPrune)."""
    epsilon = min(epsilon, density, 1 - density)
    rows = task.reshape(len(task), -1) if task.ndim > 1 else task.reshape(1, -1)
    result = np.full(rows.shape, density)
    for row, chances in zip(rows, result, strict=True):
        last = len(row) - 1
        for rank, e in enumerate(by_magnitude(row)):
            if last:
                chances[e] = density + epsilon * (1 - 2 * rank / last)
    return result.reshape(task.shape)


def pruned(task: Array, density: float, epsilon: float, key: int, rescale: bool, rescale_by: str) -> Array:
    if density >= 1:
        return task
    chances = probabilities(task, density, epsilon)
    kept = task * stays(key, chances)
    if not rescale:
        return kept
    return kept / np.where(chances > 0, chances, 1) if rescale_by == "probability" else restored(kept, task)


@paper
def della(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    epsilon: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    rescale_by: str,
    keys: Sequence[int],
) -> Array:
    given = zip(x, density, epsilon, keys, strict=False)
    tasks = [pruned(float32(v - base), d, e, key, rescale, rescale_by) for v, d, e, key in given]
    return base + lambda_ * elected(tasks, weight, normalize)


@paper
def della_linear(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    epsilon: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    rescale_by: str,
    keys: Sequence[int],
) -> Array:
    given = zip(x, density, epsilon, keys, strict=False)
    tasks = [pruned(float32(v - base), d, e, key, rescale, rescale_by) for v, d, e, key in given]
    return base + lambda_ * weighted(tasks, weight, normalize)


@paper
def ram(x: Sequence[Array], base: Array, *, epsilon: float) -> Array:
    return ramplus_tl(x, base, r=0.0, alpha=0.0, epsilon=epsilon)


@paper
def ramplus_tl(x: Sequence[Array], base: Array, *, r: float, alpha: float, epsilon: float) -> Array:
    tasks = [(v - base).reshape(-1) for v in x]
    changed = [[abs(change) > float(np.float32(epsilon)) for change in float32(task)] for task in tasks]
    count = [sum(each) for each in zip(*changed, strict=True)]
    factors = []
    for own in changed:
        alone = sum(1 for e, c in enumerate(count) if own[e] and c == 1)
        along = sum(1 for e, c in enumerate(count) if own[e] and c > 1)
        factors.append(1 + r * min(along / alone, alpha) if alone else 1.0)
    result = base.reshape(-1).copy()
    for e, c in enumerate(count):
        movers = [i for i, own in enumerate(changed) if own[e]]
        if c == 1:
            result[e] += factors[movers[0]] * tasks[movers[0]][e]
        elif c > 1:
            result[e] += sum(tasks[i][e] for i in movers) / c
    return result.reshape(base.shape)


@paper
def sce(x: Sequence[Array], base: Array, *, select_topk: float, reading: str) -> Array:
    tasks = np.stack([float32(v - base).reshape(-1) for v in x])
    if select_topk < 1:
        variance = float32(np.var(tasks, axis=0))
        differing = sum(1 for v in variance if v > 0)
        chosen = by_magnitude(variance)[: int(select_topk * differing)]
        tasks = tasks * np.isin(np.arange(base.size), chosen)
    if not base.size:
        return base
    energy = [float((task**2).mean()) for task in tasks]
    zero = 1e-6 if reading == "mergekit" else 0.0
    weights = [e / sum(energy) if sum(energy) > zero else 1 / len(tasks) for e in energy]
    result = base.reshape(-1).copy()
    for e in range(base.size):
        sign = 1 if float32(tasks[:, e].sum()) >= 0 else -1
        agreeing = [i for i, change in enumerate(tasks[:, e]) if change * sign > 0]
        if agreeing:
            divisor = max(zero, sum(weights[i] for i in agreeing))
            result[e] += sum(weights[i] * tasks[i, e] for i in agreeing) / divisor
    return result.reshape(base.shape)
