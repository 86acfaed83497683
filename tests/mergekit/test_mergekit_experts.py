"""Experts: stored one by one in our files, one tensor of the module's to mergekit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from models.architectures import save_pool
from models.merges import opened

from evomerge.errors import RecipeError
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import ByTensor, Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return opened(save_pool("mixtral", tmp_path_factory.mktemp("mixtral"), names=("base", "a")))


def recipe_of(pool: Pool, weight: Callable[[SliceId], Scalar | ByTensor]) -> Recipe:
    return pool.info.recipe(
        SliceRecipe(s, "task_arithmetic", (Input("a", None, parameters({"weight": weight(s)})),), (), Input("base"))
        for s in pool.info.slices
    )


def test_filters_hold_for_both_names_of_a_tensor(pool: Pool, tmp_path: Path) -> None:
    weights: dict[str, float] = {"attn": 0.1, "mlp": 0.2, "norm": 0.3, "embed": 0.4, "final_norm": 0.5, "head": 0.6}
    text = to_mergekit(recipe_of(pool, lambda s: weights[s.component]), pool.layout)
    entries = yaml.safe_load(text)["models"][0]["parameters"]["weight"]
    for slice_, names in pool.layout.tensors.items():
        for name in (*names, *(pool.layout.parameters[name] for name in names)):
            first = next(entry for entry in entries if entry.get("filter", "") in name)
            assert first["value"] == weights[slice_.component], name


def test_experts_of_one_tensor_cannot_differ(pool: Pool) -> None:
    differing = ByTensor(((".w1.", 0.1), (None, 0.2)))
    recipe = recipe_of(pool, lambda s: differing if s.component == "mlp" else 0.2)
    with pytest.raises(RecipeError, match=r"merges '.*experts\.\d\.w.\.weight' and others as one, '.*gate_up_proj'"):
        to_mergekit(recipe, pool.layout)
    downs = ByTensor(((".w2.", 0.1), (None, 0.2)))
    text = to_mergekit(recipe_of(pool, lambda s: downs if s.component == "mlp" else 0.2), pool.layout)
    entries = yaml.safe_load(text)["models"][0]["parameters"]["weight"]
    found = {
        name: next(entry["value"] for entry in entries if entry.get("filter", "") in name)
        for name in ("model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.gate_up_proj")
    }
    assert list(found.values()) == [0.1, 0.2]
