"""Sums by torch operations, added up in the order of the CPU's kernels (`kernels.sums`)."""

from __future__ import annotations

import torch


def padded(values: torch.Tensor, multiple: int) -> torch.Tensor:
    """With zeros at the end, which change no sum."""
    return torch.nn.functional.pad(values, (0, -len(values) % multiple))


def inner_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products as `kernels.sums.gram` adds them up: float64, one for each chunk.

    Args:
        a, b: float32, of shape ``(chunks, groups, blocks, BLOCK)``.
    """
    singles = torch.zeros_like(a[:, :, 0])
    for block in range(a.shape[2]):
        singles += a[:, :, block] * b[:, :, block]
    total = torch.zeros_like(singles[:, 0], dtype=torch.float64)
    for group in range(a.shape[1]):
        total += singles[:, group].double()
    return folded(total)


def magnitudes(values: torch.Tensor) -> torch.Tensor:
    """Sums of magnitudes as `kernels.sums.magnitudes` adds them up: float64, one for each chunk.

    Args:
        values: magnitudes, float32, of shape ``(chunks, blocks, BLOCK)``.
    """
    total = torch.zeros_like(values[:, 0], dtype=torch.float64)
    for block in range(values.shape[1]):
        total += values[:, block]
    return folded(total)


def folded(total: torch.Tensor) -> torch.Tensor:
    """Sums of rows, halves first."""
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total.view(-1)
