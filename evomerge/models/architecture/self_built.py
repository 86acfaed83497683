"""Configurations of networks that transformers does not know: they say themselves how a network is built and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from evomerge.models.architecture.residual import Residual


class SelfBuilt(ABC):
    """A network's configuration, in the place of a transformers one: of a network whose layers stay where they are.

    Attributes:
        model_type: what the architecture is called.
        architectures: the name of the network's class.
        name_or_path: the folder or file that the network is from.
        num_hidden_layers: number of its layers.
        residual: how its residual stream is written; here, why nothing can be scaled or moved.
        rest: what the network is a part of, for who uses it; ``None`` for nothing.
    """

    model_type: str
    architectures: list[str]
    name_or_path: str
    num_hidden_layers: int
    residual: Residual
    rest: Any = None

    def get_text_config(self) -> SelfBuilt:
        """Itself, as of configurations that have one part."""
        return self

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All keys with their values."""

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The network on the meta device; `PoolError` where its library cannot build it."""

    @abstractmethod
    def load(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The network with tensors of its own, by their names in it, on a device, in evaluation mode."""
