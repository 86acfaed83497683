"""A LoRA adapter on one weight, while it is trained."""

from __future__ import annotations

import math

import torch
from torch import nn


class LowRank(nn.Module):
    """Adds ``alpha / rank * B A`` to a weight; `begin` draws A as PEFT does and makes B zero."""

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.zeros(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self._scale = alpha / rank

    def begin(self, generator: torch.Generator) -> None:
        """Begin another adapter."""
        with torch.no_grad():
            self.a.uniform_(-1, 1, generator=generator).mul_(1 / math.sqrt(self.a.shape[1]))
            self.b.zero_()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the adapter."""
        return weight + self._scale * (self.b @ self.a)
