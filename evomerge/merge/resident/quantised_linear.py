"""Linear layers whose weights are kept quantised, and in full precision where that is asked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from evomerge.errors import ConfigError
from evomerge.merge.cache.merged_slice import Shapes
from evomerge.merge.resident.codecs import Codec
from evomerge.models.architecture.stacks import find_stacks


class QuantisedLinear(nn.Module):
    """A linear layer with a weight that is codes and scales, or, with empty scales, the weight itself.

    A product is that of the dequantised weight, which lives as long as it takes: the layer computes what `nn.Linear`
    computes with it, whatever else is in the batch.

    Args:
        linear: what it takes the place of, with its parameters; the weight's values are not read.
        codec: how weights are kept.

    Attributes:
        shape, dtype: of the weight.
        weight, scales: what either is at present.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, codec: Codec) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self._codec = linear.weight.dtype, codec
        self.weight = linear.weight.requires_grad_(False)
        self.register_parameter("bias", linear.bias)
        self.weight.data = linear.weight.new_empty(0)
        self.scales = nn.Parameter(torch.empty(0, device=linear.weight.device), requires_grad=False)

    @property
    def shape(self) -> torch.Size:
        """(outputs, inputs)."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def quantised_shapes(self) -> Shapes:
        """Of codes and scales."""
        return self._codec.shapes(self.shape)

    def write(self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Quantise a weight of this layer into memory."""
        self._codec.write(weight, codes, scales)

    def dequantised(self) -> torch.Tensor:
        """The weight that the layer multiplies with."""
        if not self.scales.numel():
            return self.weight
        return self._codec.read(self.weight.detach(), self.scales.detach(), self.shape, self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product with what the weight stands for."""
        return F.linear(inputs, self.dequantised(), self.bias)


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers within a model's repeated layers, by name: what is kept quantised."""
    parts = [(prefix, *own) for prefix, layers in find_stacks(module) for own in layers.named_modules()]
    return {f"{prefix}.{name}": part for prefix, name, part in parts if type(part) is nn.Linear}


def quantise_linears(module: nn.Module, codec: Codec) -> None:
    """Put a `QuantisedLinear` without a weight in the place of each of a model's linear layers.

    Raises:
        ConfigError: it has none.
    """
    found = linears_of(module)
    require_linears(found, type(module).__name__)
    for name, linear in found.items():
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, QuantisedLinear(linear, codec))


def require_linears(found: dict[str, Any], architecture: str) -> None:
    """Raise `ConfigError` where there is nothing to quantise."""
    if not found:
        raise ConfigError(
            f"evaluator.quantise is set, and the layers of {architecture} have no torch.nn.Linear",
            "architectures whose layers multiply with linear modules",
            "set evaluator.quantise=null",
        )
