"""Merges of every kind of architecture: written, loaded by plain transformers, and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.architectures import ARCHITECTURES, inputs, load, save_pool
from safetensors import safe_open

from evomerge.export.writer import write_model
from evomerge.merge.assemble import Resident
from evomerge.merge.plan import make_plan
from evomerge.models.pool import Pool, open_pool
from evomerge.recipe import Input, Recipe, SliceId, SliceRecipe, parameters

WEIGHTS = {"a": 0.7, "b": 0.4}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def opened(folders: dict[str, Path]) -> Pool:
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


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
    """The same merge of the state dictionaries that transformers loads, in float64."""
    states = {name: load(folder).state_dict() for name, folder in folders.items()}
    merged = {}
    for key, tensor in states["base"].items():
        base = tensor.double()
        merged[key] = base + sum(w * (states[m][key].double() - base) for m, w in WEIGHTS.items())
    return merged


def tensor_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def output(kind: str, module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(**inputs(kind)).logits


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_merged_written_loaded_and_in_memory(kind: str, tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path)
    expected = computed(folders)
    pool = opened(folders)
    recipe = task_arithmetic(pool)
    out = write_model(recipe, pool, tmp_path / "merged")
    assert tensor_names(out) == tensor_names(folders["base"])

    loaded = load(out)
    state = loaded.state_dict()
    assert type(loaded).__name__ == ARCHITECTURES[kind].cls
    assert type(getattr(transformers, ARCHITECTURES[kind].auto).from_pretrained(out)) is type(loaded)
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor.float(), rtol=2e-6, atol=2e-7, msg=key)

    resident = Resident(pool)
    resident.apply(make_plan(recipe, pool))
    own = resident.model.module.state_dict()
    assert own.keys() == state.keys()
    assert [key for key, tensor in state.items() if not torch.equal(own[key], tensor)] == []
    assert torch.equal(output(kind, resident.model.module), output(kind, loaded))
    assert not torch.allclose(output(kind, loaded), output(kind, load(folders["base"])), atol=1e-3)
    assert f"from transformers import {ARCHITECTURES[kind].auto}" in (out / "README.md").read_text()
