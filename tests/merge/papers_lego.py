"""An independent reading of LoRA-LEGO: units one by one, lists and outer products; clusters are scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from merge.papers import Array, paper
from merge.papers_spectra import no_matrix
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

Unit = tuple[Array, Array]


def singular_units(task: Array) -> list[Unit]:
    """Of a task vector: ``(b_j, a_j)`` with the root of the singular value on either side."""
    u, s, vh = np.linalg.svd(task, full_matrices=False)
    found = []
    for j, value in enumerate(s):
        if value > 1e-6 * s[0]:
            sign = np.sign(vh[j][np.argmax(np.abs(vh[j]))])
            found.append((sign * np.sqrt(value) * u[:, j], sign * np.sqrt(value) * vh[j]))
    return found


def lego(adapters: Sequence[tuple[float, list[Unit]]], rank: float, norms: bool, output: bool) -> list[Unit]:
    """The units of the merged adapter."""
    units = [(weight * b, a) for weight, own in adapters for b, a in own]
    units = [(b, a) for b, a in units if np.any(b) and np.any(a)]
    largest = max((sum(1 for b, a in own if np.any(b) and np.any(a)) for _, own in adapters), default=0)
    count = max(1, int(rank * largest))
    if len(units) > count:
        units.sort(key=lambda unit: (-np.linalg.norm(unit[0]) * np.linalg.norm(unit[1]), unit[1][0], unit[0][0]))
        points = np.stack([np.concatenate(unit) for unit in units])
        with threadpool_limits(1):
            labels = KMeans(count, n_init=10, random_state=0).fit_predict(points)
        rows = len(units[0][0])
        clusters = [[points[i] for i in range(len(points)) if labels[i] == label] for label in sorted(set(labels))]
        units = []
        for own in clusters:
            centroid = sum(own) / len(own)
            if norms:
                centroid = centroid / np.linalg.norm(centroid) * np.mean([np.linalg.norm(point) for point in own])
            units.append((centroid[:rows], centroid[rows:]))
    factor = np.sqrt(largest / len(units)) if output and units else 1.0
    return [(factor * b, a) for b, a in units]


@paper
def lora_lego(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Sequence[float],
    rank: float,
    norms: bool,
    output: bool,
    lambda_: float,
) -> Array:
    used = [(w, v - base) for v, w in zip(x, weight, strict=True) if w != 0]
    if not used:
        return base
    if no_matrix(base):
        return np.asarray(base + lambda_ * sum(w * task for w, task in used) / len(used))
    units = lego([(w, singular_units(task)) for w, task in used], rank, norms, output)
    return np.asarray(base + lambda_ * sum((np.outer(b, a) for b, a in units), np.zeros(base.shape)))


@paper
def lora_factors(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    cross: bool,
    lambda_: float,
) -> Array:
    used = [(w, d, v - base) for v, w, d in zip(x, weight, density, strict=True) if w != 0]
    if no_matrix(base):
        return np.asarray(base + lambda_ * sum((w * task for w, _, task in used), np.zeros(base.shape)))
    rank = min(base.shape)
    left, right, products = np.zeros((base.shape[0], rank)), np.zeros((rank, base.shape[1])), np.zeros(base.shape)
    for w, d, task in used:
        units = singular_units(task)
        b = np.stack([b for b, _ in units], axis=1) if units else np.zeros((base.shape[0], 0))
        a = np.stack([a for _, a in units]) if units else np.zeros((0, base.shape[1]))
        order = sorted(range(a.size), key=lambda i: -abs(a.flat[i]))
        kept = np.zeros(a.size)
        kept[order[: int(d * a.size)]] = 1
        a = a * kept.reshape(a.shape)
        left[:, : b.shape[1]] += w * b
        right[: a.shape[0]] += w * a
        products += w * (b @ a)
    return np.asarray(base + lambda_ * (left @ right if cross else products))
