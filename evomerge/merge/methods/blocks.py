"""Blocks in which functions of whole tensors go over them, so that temporaries stay in the cache, and sums over them.

A number that is computed of tensors on an accelerator stays there, as a tensor of no dimension: nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Number = float | torch.Tensor
"""A number of the host, or one that is known to an accelerator only."""

_CPU_BLOCK = 1 << 16  # elements
_DEVICE_BLOCK = 1 << 26  # few large kernels


def blocks(count: int, device: torch.device, width: int = 1) -> Iterator[slice]:
    """Slices that cover ``range(count)`` in order.

    Args:
        count: how many there are to cover.
        device: where they are; on the CPU blocks are small.
        width: elements that each of them has.
    """
    size = max(1, (_CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK) // max(1, width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def number(x: torch.Tensor) -> Number:
    """A tensor of one element as a number: on an accelerator itself."""
    return x.item() if x.device.type == "cpu" else x


def factor(x: Number) -> Number:
    """A number as what float32 tensors are multiplied by, rounded once."""
    return x.float() if isinstance(x, torch.Tensor) else x


def quotient(x: Any, divisor: float) -> Any:
    """A number, an array or a tensor over a number of the host, rounded once.

    Tensors are divided by a tensor: devices multiply by the reciprocal of a number.
    """
    return x / torch.full_like(x, divisor) if isinstance(x, torch.Tensor) else x / divisor


def sum_of_magnitudes(x: torch.Tensor) -> Number:
    """The sum of absolute values, added up in float64 on one thread: the same for any number of them."""
    if x.device.type == "cpu":
        return float(np.abs(x.numpy()).sum(dtype=np.float64))
    return x.abs().sum(dtype=torch.float64)


def sum_of_squares(x: torch.Tensor) -> Number:
    """The sum of squares, likewise."""
    if x.device.type == "cpu":
        return float(np.square(x.numpy(), dtype=np.float64).sum())
    return x.double().square_().sum()
