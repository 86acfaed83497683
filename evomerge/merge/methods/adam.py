"""Adam, of few tensors that need no graph."""

from __future__ import annotations

from collections.abc import Callable

import torch


def adam(
    gradient: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, iterations: int, rate: float
) -> torch.Tensor:
    """Where steps with Adam's usual settings lead (arXiv 1412.6980, algorithm 1).

    Args:
        gradient: of what is to be least, at a tensor.
        start: a tensor of any shape; not written to.
        iterations: steps.
        rate: their size.
    """
    x, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, iterations + 1):
        slope = gradient(x)
        first.mul_(0.9).add_(slope, alpha=0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        x.addcdiv_(first, size, value=-rate / (1 - 0.9**step))
    return x
