"""Tensors as lists of vectors, for methods that look at each row or column by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 1 << 20  # elements worked on at a time: float64 temporaries stay a small share of a tensor
_CHUNK = 1 << 14  # torch sums fewer elements than twice this on one thread, always in the same order


def one_vector(shape: tuple[int, ...], along: int) -> bool:
    """Whether a tensor is a single vector along its first (``along=0``) or last (``along=-1``) dimension."""
    return math.prod(shape[1:] if along == 0 else shape[:-1]) == 1


def vectors(tensor: torch.Tensor, along: int = -1) -> torch.Tensor:
    """The vectors along the last or first dimension as the rows of a matrix that shares the tensor's memory."""
    if tensor.dim() < 2:
        return tensor.view(1, -1)
    if along == 0:
        return tensor.view(tensor.shape[0], -1).T
    return tensor.view(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def blocks(rows: torch.Tensor) -> Iterator[slice]:
    """Ranges of rows, of a bounded number of elements each."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield slice(start, min(start + step, rows.shape[0]))


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows of two matrices, float64 and the same bits for every number of threads."""
    products = a.double() * b.double()
    if products.shape[0] > 1:
        return products.sum(1)
    return torch.stack([chunk.sum() for chunk in products.view(-1).split(_CHUNK)]).sum().view(1)


def grams(matrices: Sequence[torch.Tensor]) -> Any:
    """Inner products of the matrices' rows: float64 of shape ``(matrices, matrices, rows)``.

    A numpy array, or a tensor where they are on an accelerator.
    """
    count = len(matrices)
    products = matrices[0].new_empty((count, count, matrices[0].shape[0]), dtype=torch.float64)
    for i in range(count):
        for j in range(i + 1):
            products[i, j] = products[j, i] = inner(matrices[i], matrices[j])
    return products.numpy() if products.device.type == "cpu" else products


def row_factors(factors: NDArray[np.float64] | torch.Tensor) -> torch.Tensor:
    """Factors on rows, where these are: float32 of shape ``(rows, 1)``."""
    tensor = factors if isinstance(factors, torch.Tensor) else torch.from_numpy(factors)
    return tensor.float().unsqueeze(1)
