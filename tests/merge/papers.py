"""Independent readings of the papers: plain NumPy in float64, element by element where that is clearest.

`REFERENCES` has one per merge method, by name; the contract suite compares every method with its own and loads
all modules beside this one whose names start with ``papers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REFERENCES: dict[str, Callable[..., Array]] = {}


def paper(reference: Callable[..., Array]) -> Callable[..., Array]:
    """Register ``reference(inputs, base, **values) -> Array`` under its name, which is the method's.

    Arrays are float64 and of the tensor's shape; `values` are those of `methods.call_values`, and ``keys``, the mask
    keys of the inputs, for random methods.
    """
    assert reference.__name__ not in REFERENCES
    REFERENCES[reference.__name__] = reference
    return reference


def float32(x: Array) -> Array:
    """Rounded to float32: what a magnitude is compared as, so that ties are ties."""
    return x.astype(np.float32).astype(np.float64)


def splitmix(key: int, element: int) -> int:
    """The 31-bit number of an element, in Python integers."""
    z = (key + (element // 2 + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z ^= z >> 31
    return ((z >> 32) if element % 2 else (z % 2**32)) >> 1


def dropped(task: Array, key: int, density: float, rescale: bool) -> Array:
    """A task vector with each element kept with probability `density`."""
    kept = np.array([splitmix(key, e) < density * 2**31 for e in range(task.size)]).reshape(task.shape)
    return task * kept / (density if rescale and density > 0 else 1)


def by_magnitude(task: Array) -> list[int]:
    """Flat indices by falling magnitude, of equal ones the earlier first."""
    flat = task.reshape(-1)
    return sorted(range(task.size), key=lambda e: (-abs(flat[e]), e))


def trimmed(task: Array, density: float) -> Array:
    """The ``int(density * n)`` largest magnitudes, at least one."""
    keep = 0 if density == 0 else min(task.size, max(1, int(density * task.size)))
    order = by_magnitude(task)[:keep]
    result = np.zeros(task.size)
    result[order] = task.reshape(-1)[order]
    return result.reshape(task.shape)


def elected(tasks: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    """The weighted sum, or mean, of the elements whose sign is that of the weighted sum of all."""
    flat = [task.reshape(-1) for task in tasks]
    mean = np.zeros(tasks[0].size)
    for e in range(mean.size):
        votes = [w * task[e] for w, task in zip(weights, flat, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        if agreeing:
            divisor = sum(weights[i] for i in agreeing) if normalize else 1
            mean[e] = sum(votes[i] for i in agreeing) / (divisor if abs(divisor) > 1e-5 else 1)
    return mean.reshape(tasks[0].shape)


def weighted(x: Sequence[Array], weight: Sequence[float], normalize: bool) -> Array:
    """The weighted sum or mean."""
    total = sum(w * v for w, v in zip(weight, x, strict=True))
    return np.asarray(total / sum(weight) if normalize else total)


@paper
def linear(x: Sequence[Array], base: Array, *, weight: Sequence[float], normalize: bool) -> Array:
    return weighted(x, weight, normalize)


@paper
def slerp(x: Sequence[Array], base: Array, *, t: float) -> Array:
    a, b = x
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    cosine = float((a * b).sum()) / (norms[0] * norms[1]) if min(norms) > 1e-8 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@paper
def task_arithmetic(x: Sequence[Array], base: Array, *, weight: Any, lambda_: float, normalize: bool) -> Array:
    return base + lambda_ * weighted([v - base for v in x], weight, normalize)


@paper
def ties(x: Sequence[Array], base: Array, *, weight: Any, density: Any, lambda_: float, normalize: bool) -> Array:
    tasks = [trimmed(float32(v - base), d) for v, d in zip(x, density, strict=True)]
    return base + lambda_ * elected(tasks, weight, normalize)


@paper
def dare_linear(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    keys: Sequence[int],
) -> Array:
    tasks = [dropped(v - base, keys[i], density[i], rescale) for i, v in enumerate(x)]
    return base + lambda_ * weighted(tasks, weight, normalize)


@paper
def dare_ties(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    keys: Sequence[int],
) -> Array:
    tasks = [dropped(v - base, keys[i], density[i], rescale) for i, v in enumerate(x)]
    return base + lambda_ * elected(tasks, weight, normalize)
