"""Whether a model computes the same with its units in another order: tried on a small one, and on the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from evomerge.errors import PoolError, one_line
from evomerge.merge.alignment.finding import family_of, symmetries_of
from evomerge.merge.alignment.orders import Order, Symmetries
from evomerge.models.architecture.names import tied_names
from evomerge.models.architecture.tiny_model import build

TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest output: in float32, of sums in another order."""

_ROWS, _LENGTH = 2, 8


def free_kinds(config: Any) -> frozenset[str]:
    """The kinds of units that may change places without any of the outputs changing, tried on a small random model.

    A model without a head of a task gives its residual stream out, whose order then is part of what it computes; so is
    a pooler's that nothing reads.

    Args:
        config: of the architecture: a small model of the same kind is made.

    Raises:
        PoolError: the architecture is not known, or no small model can be made or run.
    """
    family_of(config)
    module = build(config)
    small = module.config
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items() if name not in tied_names(module)}
    symmetries = symmetries_of(module, small, {name: tuple(tensor.shape) for name, tensor in kept.items()})
    inputs = random_inputs(module)
    before = outputs(module, inputs)
    free = set()
    for number, kind in enumerate(sorted(symmetries.free)):
        only = replace(symmetries, free=frozenset({kind}))
        put_in_order(module, only, only.random(np.random.default_rng(number)))
        if difference(before, outputs(module, inputs)) <= TOLERANCE:
            free.add(kind)
        module.load_state_dict(kept, strict=False)
    return frozenset(free)


def put_in_order(module: nn.Module, symmetries: Symmetries, order: Order) -> None:
    """Bring the units of a model in memory into an order, in place."""
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in symmetries.axes:
            state[name].copy_(symmetries.apply(name, state[name], order))


def random_inputs(module: Any) -> dict[str, torch.Tensor]:
    """Inputs for a model, the same at every call: tokens, or pixels, two rows."""
    generator = torch.Generator().manual_seed(0)
    config = module.config
    if module.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        return {"pixel_values": torch.randn(_ROWS, config.num_channels, *size, generator=generator)}
    text = config.get_text_config()
    length = min(_LENGTH, getattr(text, "max_position_embeddings", None) or _LENGTH)
    ids = torch.randint(text.vocab_size, (_ROWS, length), generator=generator)
    padding = getattr(text, "pad_token_id", None)
    ids[ids == padding] = (padding or 0) + 1 if (padding or 0) + 1 < text.vocab_size else 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def outputs(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model gives, by name: logits, or hidden states and what is pooled of them.

    Raises:
        PoolError: it does not run.
    """
    more = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
    try:
        with torch.no_grad():
            given = module(**inputs, **more)
    except Exception as error:  # whatever a class raises
        raise PoolError(f"{type(module).__name__} cannot be run to check its alignment ({one_line(error)})") from error
    return {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}


def difference(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between outputs, as a share of the largest; infinite where one is no number."""
    found = [
        float((after[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)) for name, value in before.items()
    ]
    return max(found) if found and all(np.isfinite(found)) else float("inf")
