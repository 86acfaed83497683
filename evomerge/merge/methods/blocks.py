"""Blocks in which functions of whole tensors go over them, so that temporaries stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

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


def sum_of_magnitudes(x: torch.Tensor) -> float:
    """The sum of absolute values, added up in float64 on one thread: the same for any number of them."""
    if x.device.type == "cpu":
        return float(np.abs(x.numpy()).sum(dtype=np.float64))
    return float(x.abs().sum(dtype=torch.float64))


def sum_of_squares(x: torch.Tensor) -> float:
    """The sum of squares, likewise."""
    if x.device.type == "cpu":
        return float(np.square(x.numpy(), dtype=np.float64).sum())
    return float(x.double().square_().sum())
