"""Which tensors of a model statistics are of, slice by slice, and where in its module they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evomerge.models.architecture.layout import Layout
from evomerge.models.pool import Pool
from evomerge.recipes.slices import SliceId


@dataclass(frozen=True)
class Place:
    """A tensor that a statistic is of.

    Attributes:
        name: in the checkpoint.
        slice: that it belongs to.
        parameter: in the module.
        module: of what layers read, the layer that it is the weight of; of mixtures, what holds their experts.
        axis: along which it is multiplied with what the layer reads; of mixtures see `models.statistics.Statistic`.
        shape: of the statistic.
        leader: the name of a tensor of the slice that has the very same statistic, where it is known beforehand.
    """

    name: str
    slice: SliceId
    parameter: str
    module: str = ""
    axis: int = 1
    shape: tuple[int, ...] = ()
    leader: str = ""


@dataclass
class Places:
    """All of a model.

    Attributes:
        of_slice: by slice, in model order; slices without are left out.
        skipped: tensors without, by reason.
    """

    of_slice: dict[SliceId, list[Place]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        """Note a tensor that there is no statistic of."""
        self.skipped.setdefault(reason, []).append(name)


def parameter_places(pool: Pool, module: nn.Module) -> Places:
    """Every parameter of the only model of a pool; those that are stored in parts (experts one by one) are skipped."""
    found = Places()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for slice_, name, place, stored in _tensors(pool):
        own = parameters.get(place)
        if name in _joined(pool.layout):
            found.skip(stored, "experts that the module holds as one tensor")
        elif own is None:
            found.skip(stored, "buffers, which have no gradient")
        else:
            found.of_slice.setdefault(slice_, []).append(Place(stored, slice_, place, shape=(own.numel(),)))
    return found


def input_places(pool: Pool, module: nn.Module, full: bool) -> Places:
    """Every weight of a linear layer of the only model of a pool that no other layer shares.

    Args:
        pool, module: of the model.
        full: whether there is a number for each pair of inputs, or for each input.
    """
    found = Places()
    layers = linear_layers(module)
    for slice_, name, place, stored in _tensors(pool):
        layer = layers.get(place)
        if layer is not None and name not in _joined(pool.layout):
            path, axis, size = layer
            shape = (size, size) if full else (size,)
            found.of_slice.setdefault(slice_, []).append(Place(stored, slice_, place, path, axis, shape))
        elif len(pool.layout.shapes[name]) > 2 or name in _joined(pool.layout):
            found.skip(stored, "experts and kernels, which are no weights of linear layers: their mean is taken")
    return found


def linear_layers(module: nn.Module) -> Mapping[str, tuple[str, int, int]]:
    """By the name of their weight, the linear layers whose weight is theirs alone: name, axis and size of inputs."""
    owners: Counter[int] = Counter()
    for each in module.modules():
        owners.update(id(parameter) for parameter in each.parameters(recurse=False))
    found = {}
    for path, each in module.named_modules():
        weight: Any = getattr(each, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or owners[id(weight)] != 1:
            continue
        if isinstance(each, nn.Linear):
            found[f"{path}.weight"] = (path, 1, weight.shape[1])
        elif type(each).__name__ == "Conv1D":  # of transformers' GPT-2: y = x W
            found[f"{path}.weight"] = (path, 0, weight.shape[0])
    return found


def _tensors(pool: Pool) -> list[tuple[SliceId, str, str, str]]:
    """Slice, name in the layout, name in the module and name in the checkpoint of every tensor that is merged."""
    (model,) = pool.stored
    layout = pool.layout
    return [
        (slice_, name, layout.parameters[name], pool.stored[model][name])
        for slice_ in layout.slices
        for name in layout.tensors[slice_]
        if pool.is_merged(name)
    ]


def _joined(layout: Layout) -> frozenset[str]:
    """The tensors that the module holds as parts of others."""
    return frozenset(name for join in layout.joins for name in join.names)
