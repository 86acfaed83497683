"""Orders of magnitudes in numbers that sort: the same on every device, of equals the earlier first."""

from __future__ import annotations

import math

import torch

WORD = 0xFFFFFFFF
"""The lower word of such a number: a place."""


def row_width(shape: tuple[int, ...]) -> int:
    """Elements that belong to an index of a tensor's first dimension; all of a vector's."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def by_magnitude(task: torch.Tensor) -> torch.Tensor:
    """The columns of each row by falling magnitude, of equals the earlier first: int64, of the shape of `task`.

    Args:
        task: float32, of shape ``(rows, width)``.
    """
    keys = keys_of(task.view(torch.int32)).add_(torch.arange(task.shape[1], device=task.device))
    return ascending(keys).bitwise_and_(WORD)


def keys_of(bits: torch.Tensor) -> torch.Tensor:
    """Numbers that ascend with falling magnitude: int64 with a free lower word, of float32 bits of either sign."""
    return bits.bitwise_or(-(2**31)).bitwise_not_().to(torch.int64).bitwise_left_shift_(32)


def ascending(keys: torch.Tensor) -> torch.Tensor:
    """Rows of numbers with their places in the lower words, ascending: faster than a stable sort, the same anywhere."""
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
        return keys
    return keys.sort(dim=1).values
