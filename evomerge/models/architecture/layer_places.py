"""Whether a layer computes the same wherever it is put: found by trying it on a tiny random instance."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from evomerge.models.architecture.residual_probe import calls_of, first_tensor
from evomerge.models.architecture.stacks import find_layers


def immovable(module: nn.Module) -> str:
    """Why layers of a tiny module cannot change places; empty where they can.

    Layers of one kind must give the same with the same weights and inputs, whatever their numbers; layer types and
    other lists of the configuration that go with the layers make kinds of their own.

    Raises:
        PoolError: the module does not take tokens.
    """
    _, layers = find_layers(module)
    config: Any = module.config
    lists = {k: v for k, v in vars(config.get_text_config()).items() if isinstance(v, list) and len(v) == len(layers)}
    calls = calls_of(module, layers)
    first: dict[str, int] = {}
    for number, layer in enumerate(layers):
        shared = _refers(layer, number)
        if shared:
            return f"its layer {number} refers to another layer by number ({shared})"
        shapes = [(name, tuple(tensor.shape)) for name, tensor in layer.state_dict().items()]
        parts = [(name, type(part).__name__) for name, part in layer.named_modules()]
        kind = repr((parts, shapes, [(name, values[number]) for name, values in sorted(lists.items())]))
        like = first.setdefault(kind, number)
        if like != number and number in calls and like in calls:
            moved = copy.deepcopy(layer)
            moved.load_state_dict(layers[like].state_dict())
            call = calls[like]
            wanted, given = (first_tensor(each(*call.args, **call.kwargs)) for each in (layers[like], moved))
            if wanted is not None and given is not None and not torch.allclose(given, wanted, rtol=1e-4, atol=1e-5):
                return f"its layer {number} computes something else than layer {like} with the same weights"
    return ""


def _refers(layer: nn.Module, number: int) -> str:
    """The attribute by which a layer refers to another one by number, as those that share keys and values do."""
    for part in layer.modules():
        for name, value in vars(part).items():
            if type(value) is int and value != number and "layer" in name and ("idx" in name or "index" in name):
                return name
    return ""
