"""Products of bfloat16 in float32, on processors that have nothing faster for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from evomerge.models.arithmetic import multiplies_bfloat16

_FEWEST = 64
"""Rows from which it pays to convert a layer's weights."""
_PART = 1 << 22
"""Weights that are converted at a time."""


@contextmanager
def float32_products(module: Any) -> Iterator[None]:
    """Let the linear layers of a bfloat16 model on a processor multiply in float32 and round once, within this.

    Does nothing to other models, nor where the processor has matrix units for bfloat16.

    Args:
        module: a transformers model.
    """
    changed: list[Any] = []
    if module.dtype == torch.bfloat16 and module.device.type == "cpu" and not multiplies_bfloat16():
        changed = [part for part in module.modules() if _is_linear(part) and "forward" not in vars(part)]
    try:
        for part in changed:
            part.forward = _linear(part, part.forward)
        yield
    finally:
        for part in changed:
            vars(part).pop("forward", None)


def _is_linear(part: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing else; a quantised one has a weight that it stands for."""
    return type(part) is nn.Linear or hasattr(part, "dequantised")


def _linear(part: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def linear(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // max(1, inputs.shape[-1])
        if rows < _FEWEST or inputs.dtype != torch.bfloat16:
            return forward(inputs)
        weight, bias = part.dequantised() if hasattr(part, "dequantised") else part.weight, part.bias
        if weight.dtype != torch.bfloat16:
            return forward(inputs)
        wide = inputs.float()
        output = inputs.new_empty(*inputs.shape[:-1], len(weight))
        step = max(1, _PART // weight.shape[1])
        for first in range(0, len(weight), step):
            own = slice(first, first + step)
            output[..., own] = F.linear(wide, weight[own].float(), None if bias is None else bias[own].float())
        return output

    return linear
