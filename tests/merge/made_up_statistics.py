"""Statistics of data for tensors that no data was seen for: from their content, so that they follow their tensors."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.methods import Method
from evomerge.models.statistics import Statistic

Array = NDArray[np.float64]
_LARGEST_GRAM = 600


def squares(x: Array) -> tuple[Array, float]:
    """Squared gradients of a tensor's elements, zero for some, and the mean over the model."""
    wave = np.sin(7.3 * np.nan_to_num(x, posinf=1.0, neginf=1.0))
    found = np.where(np.abs(wave) < 0.1, 0.0, wave**2).astype(np.float32).astype(np.float64)
    return found, float(found.sum() / max(1, found.size)) or 0.25


def gram(x: Array) -> Array | None:
    """Inner products of what a matrix reads, or their diagonal where there are many; ``None`` for no matrix."""
    if x.ndim != 2 or not x.size:
        return None
    rows = np.sin(7.3 * np.nan_to_num(x, posinf=1.0, neginf=1.0))
    found = (rows**2).mean(0) if x.shape[1] > _LARGEST_GRAM else rows.T @ rows / len(rows)
    return found.astype(np.float32).astype(np.float64)


def sensitivities(x: Array) -> Array:
    """The middle one of the items' products of gradient and weight, of either sign, zero for some."""
    wave = np.sin(5.1 * np.nan_to_num(x, posinf=1.0, neginf=1.0))
    return np.where(np.abs(wave) < 0.1, 0.0, wave).astype(np.float32).astype(np.float64)


def second_derivatives(x: Array) -> tuple[Array, float]:
    """Second derivatives of a tensor's elements, of either sign, and the mean of those above 0 over the model."""
    found = sensitivities(x)
    return found, float(np.clip(found, 0, None).sum() / max(1, found.size)) or 0.25


def routing(x: Array) -> tuple[Array, int]:
    """Shares of three experts' choices and weights, and which of them a tensor is of."""
    own = np.abs(np.sin(np.arange(1.0, 4.0) + np.nan_to_num(x, posinf=1.0, neginf=1.0).ravel()[:7].sum()))
    rows = np.stack([own / own.sum(), np.array([0.5, 0.3, 0.2])])
    return rows.astype(np.float32).astype(np.float64), x.size % 3


def mask(x: Array) -> Array:
    """Factors of a tensor's elements, zero for some."""
    wave = 1 + np.sin(3.1 * np.nan_to_num(x, posinf=1.0, neginf=1.0))
    return np.where(wave < 0.2, 0.0, wave).astype(np.float32).astype(np.float64)


def columns(x: Array) -> tuple[Array, int] | None:
    """Factors of a tensor's columns, and along which axis; one for all of more than two axes, none for a scalar."""
    if not x.ndim or not x.size:
        return None
    axis = 1 if x.ndim == 2 else 0
    sums = np.nan_to_num(x, posinf=1.0, neginf=1.0).sum(axis=1 - axis if x.ndim == 2 else tuple(range(1, x.ndim)))
    found = 0.5 + 0.5 * np.sin(sums if x.ndim < 3 else sums[:1])
    return found.astype(np.float32).astype(np.float64), axis


def statistics_of(method: Method, inputs: list[torch.Tensor]) -> list[Statistic | None]:
    """What a method reads of its inputs; nothing for methods of weights alone."""
    found: list[Statistic | None] = []
    for kind, x in itertools.product(method.spec.kinds, inputs):
        content = x.double().numpy()
        if kind in ("fisher", "curvature"):
            values, mean = squares(content)
            found.append(Statistic(torch.from_numpy(values).float().reshape(-1), mean=mean))
        elif kind == "hessian":
            values, mean = second_derivatives(content)
            found.append(Statistic(torch.from_numpy(values).float().reshape(-1), mean=mean))
        elif kind == "routing":
            shares, expert = routing(content)
            found.append(Statistic(torch.from_numpy(shares).float(), expert))
        elif kind == "sensitivity":
            found.append(Statistic(torch.from_numpy(sensitivities(content)).float().reshape(-1)))
        elif kind == "mask":
            found.append(Statistic(torch.from_numpy(mask(content)).float().reshape(-1)))
        elif kind == "columns":
            learnt = columns(content)
            found.append(Statistic(torch.from_numpy(learnt[0]).float(), learnt[1]) if learnt is not None else None)
        else:
            own = gram(content)
            found.append(Statistic(torch.from_numpy(own).float()) if own is not None else None)
    return found
