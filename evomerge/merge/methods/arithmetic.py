"""Sums that several methods are made of, and reductions that give the same bits for any thread count."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import InfeasibleError

_ROW = 1024  # elements per partial sum: one thread adds each row up
_BLOCK = 1 << 20


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Sum of weight times tensor, in order; tensors of weight zero are left out."""
    terms = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not terms:
        return torch.zeros_like(tensors[0])
    total = terms[0][0] * terms[0][1]
    for tensor, weight in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total


@functools.lru_cache(maxsize=256)  # asked once per tensor, the same for all tensors of a slice
def sum_of(weights: tuple[float, ...]) -> float:
    """The sum of weights that are to be normalised, as float32 arithmetic gives it.

    Raises:
        InfeasibleError: it is zero.
    """
    total = float(torch.tensor(weights, dtype=torch.float32).sum())
    if abs(total) <= 1e-6 * math.fsum(abs(weight) for weight in weights):
        raise InfeasibleError(
            f"weights {', '.join(f'{weight:g}' for weight in weights)} sum to {math.fsum(weights):g}",
            "a sum other than zero where normalize is true",
            "set normalize to false or change the weights",
        )
    return total


def check_normalisable(values: Mapping[str, Any]) -> None:
    """Raise `InfeasibleError` when a method's ``weight`` values are to be normalised and sum to zero."""
    if values["normalize"]:
        sum_of(tuple(values["weight"]))


def only_active(weights: Sequence[float]) -> int | None:
    """The index of the only weight that is not zero; ``None`` when there are more or none."""
    active = [i for i, weight in enumerate(weights) if weight != 0]
    return active[0] if len(active) == 1 else None


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """Inner product of two flat float32 tensors, partial sums of 1024 elements added in float64.

    The order of additions does not depend on the number of threads or on memory alignment, as it does in BLAS.
    """
    partial: list[torch.Tensor] = []
    for start in range(0, a.numel(), _BLOCK):
        product = a[start : start + _BLOCK] * b[start : start + _BLOCK]
        rows = product.numel() // _ROW
        if rows:
            partial.append(product[: rows * _ROW].view(rows, _ROW).sum(1).double())
        if rows * _ROW < product.numel():
            partial.append(product[rows * _ROW :].sum(dtype=torch.float64).view(1))
    if not partial:
        return 0.0
    return math.fsum(torch.cat(partial).tolist()) if len(partial) > 1 else math.fsum(partial[0].tolist())
