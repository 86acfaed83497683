"""The same merge of tiny models by evomerge's pool and by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models.architectures import load
from safetensors import safe_open

from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

WEIGHTS = {"a": 0.7, "b": 0.4}


def opened(folders: dict[str, Path]) -> Pool:
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base", kept=None)


def task_arithmetic(pool: Pool, only: SliceId | None = None) -> Recipe:
    """The base plus both task vectors, on every slice or on one."""
    return pool.info.recipe(
        SliceRecipe(
            s,
            "task_arithmetic",
            tuple(Input(m, None, parameters({"weight": w if only in (None, s) else 0.0})) for m, w in WEIGHTS.items()),
            (),
            Input("base"),
        )
        for s in pool.info.slices
    )


def computed(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """The same merge of the state dictionaries that transformers loads, in float64; the base's integers."""
    states = {name: load(folder).state_dict() for name, folder in folders.items()}
    merged = dict(states["base"])
    for key, tensor in merged.items():
        if tensor.is_floating_point():
            base = tensor.double()
            merged[key] = base + sum(w * (states[m][key].double() - base) for m, w in WEIGHTS.items())
    return merged


def assert_close(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor.to(state[key].dtype), rtol=rtol, atol=atol, msg=key)


def different(module: Any, state: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors of a module that are not those of `state`, bit for bit."""
    own = module.state_dict()
    assert own.keys() == state.keys()
    return {key for key, tensor in state.items() if own[key].dtype != tensor.dtype or not torch.equal(own[key], tensor)}


def tensor_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())
