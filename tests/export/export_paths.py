"""Data flow paths carried out by definition: the residual stream is scaled on its way into every layer.

model = by_definition(modules, steps)      # modules: the sources by name, as plain transformers loads them
recipe = recipe_of(pool, steps)            # the same folded into an ordinary model
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from evomerge.models.architecture.stacks import find_layers
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe

SOURCES = ("a", "b")


@dataclass(frozen=True)
class Step:
    """A layer of a path, and what hidden states are multiplied by on their way into it."""

    model: str
    layer: int
    input_scale: float


def random_steps(rng: np.random.Generator, depths: Mapping[str, int], longest: int = 8) -> list[Step]:
    """A random path, half of its hops negative; the first is 1, as the embeddings are what they are."""
    steps = []
    for place in range(rng.integers(1, longest + 1)):
        model = SOURCES[rng.integers(len(SOURCES))]
        input_scale = 1.0 if place == 0 else float(rng.choice((-1.0, 1.0)) * rng.uniform(0.75, 1.4))
        steps.append(Step(model, int(rng.integers(depths[model])), input_scale))
    return steps


def by_definition(modules: Mapping[str, Any], steps: list[Step]) -> Any:
    """The path as a module, every tensor a source's own: ``h <- layer(hop * h)``."""
    module = copy.deepcopy(modules["a"])
    name, _ = find_layers(module)
    chain = nn.ModuleList()
    config = module.config.get_text_config()
    kinds = []
    for place, step in enumerate(steps):
        layer = copy.deepcopy(find_layers(modules[step.model])[1][step.layer])
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place  # of the cache of keys and values

        def scale(_: nn.Module, args: Any, kwargs: Any, hop: float = step.input_scale) -> Any:
            if args:
                return (args[0] * hop, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * hop}

        layer.register_forward_pre_hook(scale, with_kwargs=True)
        chain.append(layer)
        kinds.append((getattr(modules[step.model].config, "layer_types", None) or {step.layer: None})[step.layer])
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, chain)
    config.num_hidden_layers = len(steps)
    if getattr(config, "layer_types", None):
        config.layer_types = kinds
    return module


def recipe_of(pool: Pool, steps: list[Step]) -> Recipe:
    """The path folded: with S the product of the hops so far, a layer adds 1/S of its output to the stream."""
    product, scales = 1.0, []
    for step in steps:
        product *= step.input_scale
        scales.append(1 / product)
    entries = []
    for slice_ in pool.info.slices_at(len(steps)):
        if slice_.layer is None:
            flip = -1.0 if slice_.component == "final_norm" and scales[-1] < 0 else None
            entries.append(SliceRecipe(slice_, "passthrough", (Input("a"),), scale=flip))
            continue
        step, scale = steps[slice_.layer], scales[slice_.layer]
        own = (-1.0 if scale < 0 else None) if slice_.component == "norm" else scale
        entries.append(SliceRecipe(slice_, "passthrough", (Input(step.model, step.layer),), scale=own))
    return pool.info.recipe(entries)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max())
