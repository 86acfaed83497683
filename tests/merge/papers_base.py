"""Independent readings of the methods that go from a base towards models by another rule than a weighted sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, float32, paper


@paper
def passthrough(x: Sequence[Array], base: None, *, scale: Any) -> Array:
    return x[0] * scale[0]


def stock_ratio(tasks: Sequence[Array], reading: str) -> float:
    cosines = []
    for a, b in itertools.combinations(tasks, 2):
        lengths = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
        if reading == "mergekit":
            lengths = max(lengths, 1e-6)
        cosines.append(float((a * b).sum()) / lengths if lengths > 0 else 0.0)
    cosine, count = sum(cosines) / len(cosines), len(tasks)
    if reading == "paper" and cosine < 0:
        return 0.0
    denominator = 1 + (count - 1) * cosine
    return count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0


@paper
def model_stock(x: Sequence[Array], base: Array, *, filter_wise: bool, reading: str) -> Array:
    average = np.mean(x, axis=0)
    if not filter_wise or base.ndim < 2:
        t = stock_ratio([v - base for v in x], reading)
        return t * average + (1 - t) * base
    result = np.empty(base.shape)
    for row in np.ndindex(base.shape[:-1]):
        t = stock_ratio([v[row] - base[row] for v in x], reading)
        result[row] = t * average[row] + (1 - t) * base[row]
    return result


@paper
def nearswap(x: Sequence[Array], base: Array, *, t: float) -> Array:
    return base + np.sign(x[0] - base) * np.minimum(np.abs(x[0] - base), t)


def fusion_importance(model: Array, base: Array) -> tuple[Array, float]:
    """The importance of each element as float32, and the threshold of what is taken."""

    def softmax(v: Array) -> Array:
        e = np.exp(v - v.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))

    rows, origin = np.atleast_1d(model), np.atleast_1d(base)
    p, q = softmax(rows), softmax(origin)
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    importance = float32(np.abs(float32(rows - origin)) * np.maximum(divergence, 0.0)).reshape(base.shape)
    ordered = np.sort(importance.reshape(-1))
    first, median, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return importance, float(np.float32(median + 1.5 * (third - first)))


@paper
def arcee_fusion(x: Sequence[Array], base: Array) -> Array:
    if not base.size:
        return base
    importance, threshold = fusion_importance(x[0], base)
    return np.where(importance >= threshold, x[0], base)


@paper
def mwa(x: Sequence[Array], base: None, *, weight: Any, metric: Any, penalty: float) -> Array:
    shares = [w * m**penalty for w, m in zip(weight, metric, strict=True)]
    return sum(share * v for share, v in zip(shares, x, strict=True)) / sum(shares)  # type: ignore[return-value]


@paper
def ema(x: Sequence[Array], base: None, *, weight: Any, rate: float, unbiased: bool) -> Array:
    """The recursion, carried along for the weighted sum and for the weights."""
    series = [(v, w) for v, w in zip(x, weight, strict=True) if w != 0]
    total, sum_of_weights = series[0][0] * series[0][1], series[0][1]
    for v, w in series[1:]:
        new = 1 if unbiased else 1 - rate
        total, sum_of_weights = rate * total + new * w * v, rate * sum_of_weights + new * w
    return total / sum_of_weights
