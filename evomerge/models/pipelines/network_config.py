"""The configuration of a network of a diffusers pipeline: how it is built on the meta device, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError, reason_of
from evomerge.models.architecture.residual import Residual
from evomerge.models.architecture.self_built import SelfBuilt
from evomerge.models.memory import out_of_memory
from evomerge.models.pipelines.blocks import FIXED
from evomerge.models.pipelines.libraries import network_class, quiet
from evomerge.models.pipelines.rest import PipelineRest


class NetworkConfig(SelfBuilt):
    """What ``config.json`` of a network says.

    Args:
        values: its content.
        place: the pipeline's folder, or the file that the network is from.
        rest: the other parts; set once a pool knows whose they are.

    Raises:
        PoolError: it names no network of diffusers.
    """

    rest: PipelineRest | None

    def __init__(self, values: Mapping[str, Any], place: Path, rest: PipelineRest | None = None) -> None:
        name = values.get("_class_name")
        if not isinstance(name, str):
            raise PoolError(f"the network of {place} has _class_name {str(name)[:80]!r}", "the name of its class")
        network_class(name)
        self.model_type, self.architectures = name, [name]
        self.name_or_path = str(place)
        self.values, self.rest = dict(values), rest
        self.num_hidden_layers = 0
        self.residual = Residual("", unscalable=FIXED, unflippable=FIXED, immovable=FIXED)

    def to_dict(self) -> dict[str, Any]:
        """What the file says."""
        return dict(self.values)

    def skeleton(self) -> nn.Module:
        """The network on the meta device.

        Raises:
            PoolError: diffusers cannot build it.
        """
        with torch.device("meta"):
            return self._built()

    def load(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The network, whose parameters and buffers are the tensors themselves.

        Raises:
            PoolError: diffusers cannot build it, or tensors lack.
        """
        # Buffers that no file holds, of positions say, are computed when it is built: not on the meta device.
        module = self._built()
        try:
            module.load_state_dict(dict(tensors), assign=True)
        except RuntimeError as error:
            raise PoolError(f"the network of {self.name_or_path} cannot be filled ({reason_of(error)})") from error
        for name, buffer in module.named_buffers():
            if name not in tensors and buffer.is_floating_point():
                parent, _, own = name.rpartition(".")
                setattr(module.get_submodule(parent), own, buffer.to(device))
        return module.to(device).eval().requires_grad_(False)

    def _built(self) -> nn.Module:
        cls = network_class(self.model_type)
        content = {key: value for key, value in deepcopy(self.values).items() if not key.startswith("_name")}
        try:
            with quiet():
                module: nn.Module = cls.from_config(content)
        except Exception as error:  # classes refuse their settings in any way
            if out_of_memory(error):
                raise
            raise PoolError(
                f"diffusers cannot build the {self.model_type} of {self.name_or_path} ({reason_of(error)})",
                "the config.json that belongs to the weights",
                "download it again, or upgrade diffusers",
            ) from error
        return module
