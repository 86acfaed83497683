"""Independent readings of the methods on spheres, on the vectors themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, paper


def norm(x: Array) -> float:
    return math.sqrt(float((x * x).sum()))


def interpolated(a: Array, b: Array, t: float) -> Array:
    """SLERP of two vectors, a zero one at right angles to the other."""
    lengths = norm(a) * norm(b)
    cosine = float((a * b).sum()) / lengths if min(norm(a), norm(b)) > 1e-8 else 0.0
    if cosine * cosine >= 1 - 1e-6:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@paper
def nuslerp(
    x: Sequence[Array], base: Array | None, *, weight: Any, nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> Array:
    t = weight[1] / sum(weight)
    a, b = x if base is None else [v - base for v in x]
    if nuslerp_flatten or a.ndim < 2:
        mixed = interpolated(a, b, t)
    else:
        axis = 0 if nuslerp_row_wise else -1
        a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
        mixed = np.empty(a.shape)
        for index in np.ndindex(a.shape[:-1]):
            mixed[index] = interpolated(a[index], b[index], t)
        mixed = np.moveaxis(mixed, -1, axis)
    return mixed if base is None else base + mixed


def log(p: Array, u: Array) -> Array | None:
    """The tangent at `p` that leads to `u`; ``None`` when they are opposite."""
    cosine = min(1.0, float((p * u).sum()))
    if cosine < -0.9995:
        return None
    across = u - cosine * p
    length = norm(across)
    return across * (math.acos(cosine) / length) if length > 1e-9 else across


def exp(p: Array, tangent: Array) -> Array:
    length = norm(tangent)
    return p if length == 0 else math.cos(length) * p + math.sin(length) * tangent / length


def summed_logs(p: Array, units: Sequence[Array], weights: Sequence[float]) -> Array | None:
    logs = [log(p, u) for u, w in zip(units, weights, strict=True) if w != 0]
    used = [w for w in weights if w != 0]
    if any(tangent is None for tangent in logs):
        return None
    return np.asarray(sum(w * tangent for w, tangent in zip(used, logs, strict=True) if tangent is not None))


@paper
def multislerp(
    x: Sequence[Array], base: Array | None, *, weight: Any, normalize_weights: bool, eps: float, reading: str
) -> Array:
    tasks = [v if base is None else v - base for v in x]
    weights = [w / sum(weight) for w in weight] if normalize_weights else list(weight)
    origin = np.zeros_like(tasks[0]) if base is None else base
    average = origin + sum(w * task for w, task in zip(weights, tasks, strict=True))
    directed = [i for i, task in enumerate(tasks) if norm(task) > eps]
    units, shares = [tasks[i] / norm(tasks[i]) for i in directed], [weights[i] for i in directed]
    total = sum((w * u for w, u in zip(shares, units, strict=True)), np.zeros_like(tasks[0]))
    if norm(total) <= 1e-6 * sum(abs(w) for w in shares):
        return average
    point = total / norm(total)
    if reading == "paper":
        tangent = summed_logs(point, units, shares)
        if tangent is None:
            return average
        point = exp(point, tangent)
    return origin + point * sum(w * norm(task) for w, task in zip(weights, tasks, strict=True))


@paper
def karcher(x: Sequence[Array], base: None, *, weight: Any, max_iter: int, tol: float) -> Array:
    weights = [w / sum(weight) for w in weight]
    average = np.asarray(sum(w * v for w, v in zip(weights, x, strict=True)))
    directed = [i for i, v in enumerate(x) if norm(v) > 1e-8 and weights[i] > 0]
    units = [x[i] / norm(x[i]) for i in directed]
    shares = [weights[i] / sum(weights[j] for j in directed) for i in directed]
    total = sum((w * u for w, u in zip(shares, units, strict=True)), np.zeros_like(x[0]))
    if norm(total) <= 1e-6:
        return average
    point = total / norm(total)
    for _ in range(max_iter):
        tangent = summed_logs(point, units, shares)
        if tangent is None:
            return average
        if norm(tangent) < tol:
            break
        point = exp(point, tangent)
    return point * sum(w * norm(v) for w, v in zip(weights, x, strict=True))
