"""Dense layers of sentence-transformers behind a model: as modules of torch, apart or as part of the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError, reason_of
from evomerge.models.sentence_encoder import Dense

FILE = "model.safetensors"
"""In a layer's folder."""

DENSE = "dense_layers"
"""Set on a configuration whose models have them merged: the fields of each `Dense`."""

_ATTRIBUTE = "sentence_dense"


class DenseLayer(nn.Module):
    """``activation(x W^T + b)``, with the input, or a projection of it, added where the layer is residual.

    Args:
        settings: widths and activation.
    """

    def __init__(self, settings: Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(settings.inputs, settings.outputs, bias=settings.bias)
        self.activation: nn.Module = getattr(nn, settings.activation)()
        self._is_residual = settings.residual
        if settings.residual and settings.inputs != settings.outputs:
            self.residual = nn.Linear(settings.inputs, settings.outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape ``(..., outputs)`` in the layer's dtype."""
        x = x.to(self.linear.weight.dtype)
        found: torch.Tensor = self.activation(self.linear(x))
        if self._is_residual:
            found = found + (self.residual(x) if hasattr(self, "residual") else x)
        return found


def read_layers(layers: Sequence[Dense], folder: Path, device: torch.device) -> list[DenseLayer]:
    """The layers with the weights that a model's folder has.

    Raises:
        PoolError: a file is not there or holds other tensors.
    """
    from safetensors.torch import load_file

    found = []
    for settings in layers:
        path, layer = folder / settings.place / FILE, DenseLayer(settings)
        try:
            layer.load_state_dict(load_file(path))
        except Exception as error:  # torch and safetensors raise their own
            raise PoolError(
                f"{path} cannot be read ({reason_of(error)})",
                f"safetensors with {', '.join(f'{name} {shape}' for name, shape in settings.shapes.items())}",
                "save the model again with sentence-transformers",
            ) from error
        found.append(layer.to(device).eval())
    return found


def attach_dense(module: nn.Module, config: Any) -> None:
    """Make the dense layers that a configuration has, if any, part of a module; `places` names their tensors."""
    layers = merged_layers(config)
    if layers:
        held = nn.ModuleDict({key_of(settings): DenseLayer(settings) for settings in layers})
        setattr(module, _ATTRIBUTE, held)


def merged_layers(config: Any) -> tuple[Dense, ...]:
    """The dense layers that are merged with models of a configuration."""
    return tuple(Dense(**own) for own in getattr(config, DENSE, None) or ())


def give_dense(module: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make the dense layers of a configuration part of a loaded module, with these tensors by `places`."""
    attach_dense(module, config)
    for place, tensor in tensors.items():
        parent, _, name = place.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Parameter(tensor.to(module.device), requires_grad=False))


def attached(module: Any) -> tuple[DenseLayer, ...]:
    """The dense layers that are part of a module, in order."""
    held = getattr(module, _ATTRIBUTE, None)
    return tuple(own for own in held.values() if isinstance(own, DenseLayer)) if isinstance(held, nn.ModuleDict) else ()


def key_of(settings: Dense) -> str:
    """The name of a layer among those of a module."""
    return settings.place.replace("/", "_").replace(".", "_")


def places(layers: Sequence[Dense]) -> dict[str, tuple[Dense, str]]:
    """By name in the module the layer, and the name in its file, of every tensor."""
    return {f"{_ATTRIBUTE}.{key_of(own)}.{name}": (own, name) for own in layers for name in own.shapes}


def write_dense(tensors: Mapping[tuple[Dense, str], torch.Tensor], folder: Path) -> None:
    """Write merged layers into a model's folder, in place of those that were copied there.

    Args:
        tensors: by layer and name in its file.
        folder: the model's.
    """
    from safetensors.torch import save_file

    files: dict[str, dict[str, torch.Tensor]] = {}
    for (layer, name), tensor in tensors.items():
        files.setdefault(layer.place, {})[name] = tensor
    for place, own in files.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        save_file(own, folder / place / FILE)
