"""Independent readings of the methods that decompose task vectors: NumPy in float64, full matrices, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from merge.papers import Array, by_magnitude, float32, paper

ZERO = 1e-6


def average(x: Sequence[Array], base: Array, factor: float) -> Array:
    """What a tensor that is no matrix comes to."""
    return np.asarray(base + factor * np.mean([v - base for v in x], axis=0))


def no_matrix(base: Array) -> bool:
    return base.ndim != 2 or not base.size


def parts(matrix: Array, most: int | None = None, scale: float | None = None) -> list[tuple[float, Array, Array]]:
    """Singular triplets ``(value, left, right)`` that are not rounding."""
    u, s, vh = np.linalg.svd(matrix)
    least = ZERO * (s[0] if scale is None else scale)
    return [(s[j], u[:, j], vh[j]) for j in range(len(s)) if s[j] > least][:most]


def orthogonalised(columns: list[Array]) -> list[Array]:
    """Columns replaced by those of the polar factor, through the square root of their inner products."""
    stacked = np.stack(columns, axis=1)
    values, vectors = np.linalg.eigh(stacked.T @ stacked)
    kept = values > ZERO**2 * values.max()
    root = vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T
    return list((stacked @ root).T)


@paper
def iso_c(x: Sequence[Array], base: Array, *, lambda_: float) -> Array:
    if no_matrix(base):
        return average(x, base, lambda_)
    found = parts(np.sum([v - base for v in x], axis=0))
    level = np.mean([value for value, _, _ in found]) if found else 0.0
    return base + lambda_ * level * sum((np.outer(left, right) for _, left, right in found), np.zeros(base.shape))


def summed(found: Sequence[tuple[float, Array, Array]], shape: tuple[int, ...]) -> Array:
    """Of triplets."""
    return np.asarray(sum((value * np.outer(left, right) for value, left, right in found), np.zeros(shape)))


@paper
def iso_cts(x: Sequence[Array], base: Array, *, lambda_: float, common: float) -> Array:
    if no_matrix(base):
        return average(x, base, lambda_)
    tasks, side = [v - base for v in x], min(base.shape)
    own = round((side - int(side * common)) / len(tasks))
    while own * len(tasks) > side:
        own -= 1
    found = parts(np.sum(tasks, axis=0), side - own * len(tasks))
    shared = sum((np.outer(left, left) for _, left, _ in found), np.zeros((base.shape[0],) * 2))
    for task in tasks:
        found = found + parts(task - shared @ task, own, float(np.linalg.norm(task)))
    if not found:
        return base
    columns = orthogonalised([left for _, left, _ in found])
    rows = orthogonalised([right for _, _, right in found])
    level = np.mean([value for value, _, _ in found])
    return base + lambda_ * level * sum(np.outer(u, v) for u, v in zip(columns, rows, strict=True))


@paper
def tsv_m(x: Sequence[Array], base: Array, *, weight: Sequence[float], rank: float, lambda_: float) -> Array:
    used = [(v - base, w) for v, w in zip(x, weight, strict=True) if w != 0]
    if not used:
        return base
    if no_matrix(base):
        return base + lambda_ * sum(w * task for task, w in used) / len(used)
    keep = max(1, int(rank * min(base.shape) / len(used)))
    found = [(value, left, right, w) for task, w in used for value, left, right in parts(task, keep)]
    if not found:
        return base
    columns = orthogonalised([left for _, left, _, _ in found])
    rows = orthogonalised([right for _, _, right, _ in found])
    every = zip(found, columns, rows, strict=True)
    return np.asarray(base + lambda_ * sum(w * value * np.outer(u, v) for (value, _, _, w), u, v in every))


def adam_steps(gradient_at: Callable[[Array], Array], x: Array, iterations: int, rate: float) -> Array:
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, iterations + 1):
        gradient = gradient_at(x)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        x = x - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return x


class Loss:
    """``sum_i ||(X - T_i) L_i^T||^2 / ||tau_i||^2``, model by model."""

    def __init__(self, targets: Sequence[Array], directions: Sequence[Array], tasks: Sequence[Array]) -> None:
        norms = [float((task**2).sum()) for task in tasks]
        self.terms = [(t, d, n) for t, d, n in zip(targets, directions, norms, strict=True) if n > 0]

    def gradient(self, x: Array) -> Array:
        return np.asarray(sum(2 * (x - target) @ d.T @ d / norm for target, d, norm in self.terms))

    def minimum(self, x: Array) -> Array:
        """The nearest, as one least-squares problem."""
        left = np.concatenate([d / np.sqrt(norm) for _, d, norm in self.terms])
        right = np.concatenate([d @ (target - x).T / np.sqrt(norm) for target, d, norm in self.terms])
        return np.asarray(x + np.linalg.lstsq(left, right, rcond=ZERO)[0].T)

    def adam(self, x: Array, iterations: int, rate: float) -> Array:
        return adam_steps(self.gradient, x, iterations, rate)

    def momentum(self, x: Array, iterations: int, rate: float) -> Array:
        velocity = np.zeros_like(x)
        for _ in range(iterations):
            velocity = 0.9 * velocity + self.gradient(x)
            x = x - rate * velocity
        return x


@paper
def wudi(x: Sequence[Array], base: Array, *, lambda_: float, iterations: int, rate: float) -> Array:
    if no_matrix(base):
        return average(x, base, lambda_)
    tasks = [v - base for v in x]
    loss, start = Loss(tasks, tasks, tasks), np.asarray(np.sum(tasks, axis=0))
    if not loss.terms:
        return base
    found = loss.adam(start, iterations, rate) if iterations else loss.minimum(start)
    return base + lambda_ * found


@paper
def optmerge(
    x: Sequence[Array], base: Array, *, lambda_: float, rank: float, iterations: int, rate: float, tuning: str
) -> Array:
    if no_matrix(base):
        return average(x, base, lambda_)
    tasks = [v - base for v in x]
    keep, mean = max(1, int(rank * min(base.shape) / len(tasks))), np.asarray(np.mean(tasks, axis=0))
    directions = []
    for task in tasks:
        rows = [value * right for value, _, right in parts(task, keep)]
        directions.append(np.stack(rows) if rows else np.zeros((1, base.shape[1])))
    if tuning == "lora":
        loss = Loss([summed(parts(task, keep), base.shape) for task in tasks], directions, tasks)
        found = loss.momentum(mean, iterations, rate) if iterations else loss.minimum(mean)
    else:
        rest = [summed(parts(t - mean, keep, float(np.linalg.norm(t))), base.shape) for t in tasks]
        loss = Loss([mean + each for each in rest], directions, tasks)
        start = np.asarray(np.sum(tasks, axis=0))
        found = loss.adam(start, iterations, rate) if iterations else loss.minimum(start)
    return base + lambda_ * found


@paper
def opcm(x: Sequence[Array], base: Array, *, lambda_: float, alpha: float, place: Sequence[float]) -> Array:
    tasks = [x[i] - base for i in np.argsort(place, kind="stable")]
    merged = tasks[0]
    for task in tasks[1:]:
        merged = merged + (task if no_matrix(base) else away_from(merged, task, alpha))
    norm, wanted = np.linalg.norm(merged), np.mean([np.linalg.norm(task) for task in tasks])
    return np.asarray(base + lambda_ * merged * (min(1.0, wanted / norm) if norm > 0 else 1.0))


def away_from(merged: Array, task: Array, alpha: float) -> Array:
    """A task vector in the singular bases of a sum, with whole bases, entry by entry."""
    u, s, vh = np.linalg.svd(merged)
    real = int((s > ZERO * s[0]).sum())
    inside = u.T @ task @ vh.T
    for i in range(real):
        for j in range(real):
            corner = max(i, j) < sum(s[: k + 1].sum() <= alpha * s[:real].sum() for k in range(real))
            if i == j or corner or alpha >= 1:
                inside[i, j] = 0.0
    return np.asarray(u @ inside @ vh)


@paper
def doge(
    x: Sequence[Array],
    base: Array,
    *,
    lambda_: float,
    eta: float,
    density: float,
    iterations: int,
    rate: float,
    subspace: int,
) -> Array:
    tasks = [float32(v - base) for v in x if (v != base).any()]
    if no_matrix(base) or not tasks:
        return base
    side, scales = min(base.shape), [eta / np.linalg.norm(task) for task in tasks]
    left = [vector for task in tasks for _, vector, _ in parts(task, side // len(tasks))]
    fixed = np.zeros((base.shape[0],) * 2)
    if left:
        fixed = sum((np.outer(u, u) for _, u, _ in parts(np.stack(left, axis=1), side // subspace)), fixed)

    def gradient(delta: Array) -> Array:
        whole = sum(scale * (task + delta) for scale, task in zip(scales, tasks, strict=True))
        found = np.zeros_like(delta)
        for task in tasks:
            for row in range(len(task)):
                found[row] += 2 * (task[row] @ (whole[row] - task[row])) * sum(scales) * task[row]
        return np.asarray(found - fixed @ found)

    delta = adam_steps(gradient, np.zeros_like(base), iterations if len(tasks) > 1 else 0, rate)
    result = base.copy()
    for scale, task in zip(scales, tasks, strict=True):
        kept = np.zeros(task.size)
        kept[by_magnitude(task)[: int(density * task.size)]] = 1
        result += lambda_ * scale * (task + delta) * kept.reshape(task.shape)
    return result
