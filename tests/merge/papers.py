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

    A tensor is all that there is: over it the scopes of ranks are one. Arrays are float64 and of its shape; `values`
    are those of `methods.call_values`, and ``keys``, the mask keys of the inputs, for random methods.
    """
    assert reference.__name__ not in REFERENCES
    REFERENCES[reference.__name__] = reference
    return reference


def float32(x: Array) -> Array:
    """Rounded to float32: what a magnitude is compared as, so that ties are ties."""
    return x.astype(np.float32).astype(np.float64)


def mask_number(key: int, element: int) -> int:
    """The 31-bit number of an element, in Python integers: triple32 with the key's words added."""
    x = (element + key) % 2**32
    x = (x ^ (x >> 17)) * 0xED5AD4BB % 2**32
    x = (x + (element >> 32) * 0x9E3779B9 + (key >> 32)) % 2**32
    x = (x ^ (x >> 11)) * 0xAC4C1B51 % 2**32
    x = (x ^ (x >> 15)) * 0x31848BAB % 2**32
    return (x ^ (x >> 14)) >> 1


def stays(key: int, probability: Array) -> Array:
    """Which elements of a tensor stay, each with its probability: ones and zeros."""
    flat = probability.reshape(-1)
    kept = [mask_number(key, e) < p * 2**31 for e, p in enumerate(flat)]
    return np.array(kept, dtype=np.float64).reshape(probability.shape)


def dropped(task: Array, key: int, density: float, rescale: bool, rescale_by: str = "probability") -> Array:
    """A task vector with each element kept with probability `density`, and rescaled."""
    kept = task * stays(key, np.full(task.shape, density))
    if rescale and rescale_by == "magnitude":
        return restored(kept, task)
    return kept / (density if rescale and density > 0 else 1)


def restored(rest: Array, task: Array) -> Array:
    """What is left of a task vector, with the sum of magnitudes that the whole had."""
    left = float(np.abs(rest).sum())
    return rest * (float(np.abs(task).sum()) / left) if left > 0 else rest


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
def ties(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Any,
    density: Any,
    lambda_: float,
    normalize: bool,
    rescale: bool,
    scope: str,
) -> Array:
    whole = [float32(v - base) for v in x]
    tasks = [trimmed(task, d) for task, d in zip(whole, density, strict=True)]
    if rescale:
        tasks = [restored(rest, task) for rest, task in zip(tasks, whole, strict=True)]
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
    rescale_by: str,
    keys: Sequence[int],
) -> Array:
    tasks = [dropped(v - base, keys[i], density[i], rescale, rescale_by) for i, v in enumerate(x)]
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
    rescale_by: str,
    keys: Sequence[int],
) -> Array:
    tasks = [dropped(v - base, keys[i], density[i], rescale, rescale_by) for i, v in enumerate(x)]
    return base + lambda_ * elected(tasks, weight, normalize)
