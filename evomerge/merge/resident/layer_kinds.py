"""Kinds of layers: what a layer computes besides its weights, which follows the source layer wherever it is put.

Layers of one model may differ in more than weights: sliding or full attention, dense or with experts. What differs is
read off the modules themselves and off the lists in the configuration that have an entry for every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evomerge.merge.resident.quantised_linear import QuantisedLinear

_PLAIN = (bool, int, float, str, type(None))
# Hooks and the like, and what `from_pretrained` leaves behind.
_OF_MODULES = frozenset(vars(nn.Module())) | {"_is_hf_initialized"}
_ABOUT_LAYERS = ("layer", "block")  # in the names of lists with an entry per layer, and of numbers of layers


@dataclass(frozen=True, eq=False)
class Kind:
    """Layers that compute the same with the same weights.

    Attributes:
        layer: number of a layer of the kind.
        module: that layer.
        entries: its entries in the configuration's lists, by their names.
        refers: names of attributes that seem to refer to other layers by number; those of a path may be elsewhere.
    """

    layer: int
    module: nn.Module
    entries: Mapping[str, Any]
    refers: tuple[str, ...] = ()


def lists_of(config: Any, layers: int) -> dict[str, list[Any]]:
    """The lists of a configuration that have an entry for each of its `layers`, by name."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == layers and any(word in name for word in _ABOUT_LAYERS)
    }


def numbers_of(layers: Sequence[nn.Module]) -> frozenset[str]:
    """Names of the attributes that hold a layer's own number: the index of its entry in the key-value cache."""
    found: frozenset[str] | None = None
    for number, layer in enumerate(layers):
        own = {
            name
            for module in layer.modules()
            for name, value in vars(module).items()
            if type(value) is int and value == number
        }
        found = frozenset(own) if found is None else found & own
    names = found or frozenset()
    # Of a model with a single layer, any zero could be its number.
    return names if len(layers) > 1 else frozenset(n for n in names if any(word in n for word in _ABOUT_LAYERS))


class Kinds:
    """The kinds of a model's layers.

    Args:
        layers: the modules, as they were built for their places.
        config: the configuration of the part that they are of.

    Attributes:
        lists: the configuration's lists with an entry per layer.
        numbers: names of the attributes that hold a layer's own number.
        own: the kind of each layer.
    """

    def __init__(self, layers: Sequence[nn.Module], config: Any) -> None:
        self.lists = lists_of(config, len(layers))
        self.numbers = numbers_of(layers)
        self._looks: dict[str, Kind] = {}
        known: dict[str, Kind] = {}
        own = []
        for number, layer in enumerate(layers):
            entries = {name: values[number] for name, values in self.lists.items()}
            look, refers = self._look(layer, number, entries)
            buffers = [(name, _buffer(tensor)) for name, tensor in layer.named_buffers()]
            own.append(known.setdefault(repr((look, buffers)), Kind(number, layer, entries, refers)))
            self._looks.setdefault(look, own[-1])
        self.own = tuple(own)

    def like(self, layers: Sequence[nn.Module], config: Any) -> list[Kind | None]:
        """The kinds of another model's layers, as this one has them; ``None`` for layers that it has none like.

        Args:
            layers: the modules, on any device.
            config: their configuration.
        """
        lists, found = lists_of(config, len(layers)), []
        for number, layer in enumerate(layers):
            entries = {name: values[number] for name, values in lists.items()}
            found.append(self._looks.get(self._look(layer, number, entries)[0]))
        return found

    def _look(self, layer: nn.Module, number: int, entries: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """What a layer is, without the values and dtypes of its tensors, and what in it refers to other layers."""
        refers: set[str] = set()
        content = []
        for name, part in layer.named_modules():
            plain = {}
            for attribute, value in vars(part).items():
                if attribute in _OF_MODULES or not _is_plain(value):
                    continue
                if attribute in self.numbers and value == number:
                    continue
                plain[attribute] = value
                if type(value) is int and "layer" in attribute and ("idx" in attribute or "index" in attribute):
                    refers.add(attribute)
            shapes = [(key, tuple(p.shape)) for key, p in part.named_parameters(recurse=False)]
            kind = type(part).__qualname__
            if isinstance(part, QuantisedLinear):  # what it is kept as says nothing of the layer
                kind, shapes = nn.Linear.__qualname__, [("weight", tuple(part.shape)), *shapes[1:-1]]
            content.append((name, kind, sorted(plain.items(), key=lambda pair: pair[0]), shapes))
        return repr((content, sorted(entries.items(), key=lambda pair: pair[0]))), tuple(sorted(refers))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, _PLAIN) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _buffer(tensor: torch.Tensor) -> Any:
    """What tells buffers apart: their content, which is not learned."""
    return tuple(tensor.shape), tensor.dtype, tensor.detach().cpu().flatten()[:4096].tolist()
