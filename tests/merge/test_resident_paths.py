from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.export_paths import Step
from export.export_paths import by_definition as path_by_definition
from merge.path_models import IDS, KINDS, LAYERS, by_definition, open_sources, path_recipe, random_path, save_source
from models.architectures import load, save_pool

from evomerge.errors import RecipeError
from evomerge.merge.cache.merged_slice import ALIGNMENT
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

SOURCE = {"a": 1.0}
AVERAGE = {"a": 0.5, "b": 0.5}


@torch.no_grad()
def logits(resident: Resident) -> torch.Tensor:
    answer: torch.Tensor = resident.model.module(IDS).logits
    return answer


def state(resident: Resident) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in resident.model.module.state_dict().items()}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def follow(resident: Resident, pool: Pool, path: Any) -> Any:
    return resident.apply(make_plan(path_recipe(pool, path), pool))


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_what_their_definition_says(kind: str, tmp_path: Path) -> None:
    pool, rng = open_sources(tmp_path, kind), np.random.default_rng(0)
    names = ("eager",) if kind == "gemma2" else ("sdpa", "eager")  # soft-capped attention has no fused form
    residents = {attn: Resident(pool, attn_implementation=attn) for attn in names}
    ordinary = make_plan(pool.info.linear(AVERAGE), pool)
    expected = {}
    for attn, resident in residents.items():
        resident.apply(ordinary)
        expected[attn] = state(resident), logits(resident), resident.model.module.config.to_dict()
    answers = []
    for step, depth in enumerate((1, LAYERS, 2, 2 * LAYERS + 1, LAYERS, 3)):
        path = random_path(rng, depth, signs=step > 1 and not pool.info.unflippable)
        for attn, resident in residents.items():
            follow(resident, pool, path)
            answers.append(logits(resident))
            assert close(answers[-1], by_definition(pool, path, attn)), (step, attn)
    assert not close(answers[0], answers[-1])
    for attn, resident in residents.items():
        resident.apply(ordinary)
        tensors, answer, config = expected[attn]
        own = state(resident)
        assert own.keys() == tensors.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
        assert torch.equal(logits(resident), answer)
        assert resident.model.module.config.to_dict() == config


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_of_keys_and_values_changes_no_token(kind: str, tmp_path: Path) -> None:
    pool, rng = open_sources(tmp_path, kind), np.random.default_rng(1)
    resident = Resident(pool)
    for depth in (2, 2 * LAYERS + 1):
        path = random_path(rng, depth)
        path[-1] = path[0]  # repeated layers have a cache each
        follow(resident, pool, path)
        options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        tokens = [resident.model.module.generate(IDS, use_cache=cache, **options) for cache in (True, False)]
        assert torch.equal(*tokens)
        cache = resident.model.module(IDS, use_cache=True).past_key_values
        assert len(cache) == depth
        assert [layer.get_seq_length() for layer in cache.layers] == [IDS.shape[1]] * depth


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_layers_that_only_a_deeper_model_has(kind: str, tmp_path: Path) -> None:
    more = LAYERS + 3
    folders = {"a": save_source(tmp_path / "a", kind, 0), "b": save_source(tmp_path / "b", kind, 1, more)}
    pool = open_pool({name: str(folder) for name, folder in folders.items()})
    assert (pool.info.layers, pool.info.depth("b")) == (LAYERS, more)
    resident = Resident(pool)
    for path in (
        [("b", more - 1, 1.0), ("a", 1, 0.8), ("b", more - 2, 1.2), ("b", 0, 1.0)],
        [("b", layer, 1.0) for layer in range(more)],
        [("a", layer, 1.1) for layer in range(LAYERS)],
    ):
        follow(resident, pool, path)
        assert close(logits(resident), by_definition(pool, path, resident.model.module.config._attn_implementation))
    with pytest.raises(RecipeError, match=f"takes layer {more} of b; b has layers 0 to {more - 1}"):
        follow(resident, pool, [("b", more, 1.0)])


def test_layers_of_a_path_are_the_sources_own(tmp_path: Path) -> None:
    pool = open_sources(tmp_path, "llama")
    resident = Resident(pool)
    for model in ("b", "a"):  # each source's layers are brought to where they can be used
        follow(resident, pool, [(model, layer, 1.0) for layer in range(LAYERS)])
    path = [("a", 3, 1.0), ("b", 1, 2.0), ("b", 1, 0.25), ("a", 3, 1.0), ("a", 0, 1.0), ("b", 1, 1.0)]
    before = len(resident.sources.notes._large)
    count = follow(resident, pool, path)
    assert (count.computed, count.computed_bytes, count.memory) == (0, 0, 0)
    layers = find_layers(resident.model.module)[1]
    assert len(layers) == len(path)
    tensors = [dict(layer.named_parameters()) for layer in layers]
    for name in tensors[0]:
        at = [own[name].data_ptr() for own in tensors]
        assert at[0] == at[3]
        assert at[1] == at[2] == at[5]
        assert len(set(at)) == 3
        for place, (model, layer, _) in enumerate(path):
            source = pool.read(model, f"model.layers.{layer}.{name}")
            assert torch.equal(tensors[place][name], source)
            if source.data_ptr() % ALIGNMENT == 0:
                assert at[place] == source.data_ptr()
    for other in (path[::-1], path[1:], path[:1] * 3, path):
        count = follow(resident, pool, other)
        assert (count.computed, count.memory, count.shared) == (0, 0, 0)
    assert len(resident.sources.notes._large) == before  # nothing was copied on the way


def test_kinds_of_layers_follow_their_source(tmp_path: Path) -> None:
    pool = open_sources(tmp_path, "gemma3")
    resident = Resident(pool)
    config = resident.model.module.config
    own = config.layer_types
    path = [("b", 2, 1.0), ("a", 2, 1.0), ("a", 0, 1.0), ("b", 2, 1.0), ("a", 3, 1.0)]
    follow(resident, pool, path)
    assert config.num_hidden_layers == len(path)
    assert config.layer_types == [own[layer] for _, layer, _ in path]
    layers: Any = find_layers(resident.model.module)[1]
    assert [layer.self_attn.is_sliding for layer in layers] == [layer != 2 for _, layer, _ in path]
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(len(path)))
    resident.apply(make_plan(pool.info.linear(SOURCE), pool))
    assert config.layer_types is own
    assert config.num_hidden_layers == LAYERS


def test_scaled_layers_with_experts_and_without(tmp_path: Path) -> None:
    """Their outputs come from different modules; a candidate is scored the same, whatever came before it."""
    folders = save_pool("qwen3_moe", tmp_path, ("a", "b"), num_hidden_layers=3)  # the first layer is dense
    pool = open_pool({name: str(folder) for name, folder in folders.items()})
    path = [("b", 0, 1.3), ("a", 1, 0.8), ("b", 2, 1.2)]
    modules = {name: load(folder) for name, folder in folders.items()}
    expected = path_by_definition(modules, [Step(*hop) for hop in path])
    resident = Resident(pool)
    for _ in range(2):
        follow(resident, pool, path)
        with torch.no_grad():
            assert close(logits(resident), expected(IDS).logits)


def test_a_path_through_an_intermediate_holds_its_layers_once(tmp_path: Path) -> None:
    pool = open_sources(tmp_path, "llama")
    average = pool.info.linear(AVERAGE)
    path = [("m", 1), ("a", 2), ("m", 1), ("m", 3), ("m", 1)]
    slices = [
        SliceRecipe(SliceId(s.component, place), "passthrough", (Input(model, layer),))
        for place, (model, layer) in enumerate(path)
        for s in pool.info.slices
        if s.layer == 0
    ]
    slices += [SliceRecipe(s, "passthrough", (Input("a"),)) for s in pool.info.slices if s.layer is None]
    recipe = replace(average, slices=tuple(slices), intermediates=(("m", average),))
    resident = Resident(pool)
    count = resident.apply(make_plan(recipe, pool))
    assert count.computed == 2 * 3  # layers 1 and 3 of the intermediate
    layers = find_layers(resident.model.module)[1]
    merged = Resident(pool)
    merged.apply(make_plan(average, pool))
    names = dict(layers[0].named_parameters())
    for place, (model, layer) in enumerate(path):
        for name in names:
            tensor = layers[place].get_parameter(name)
            whole = f"model.layers.{layer}.{name}"
            expected = merged.model.module.get_parameter(whole) if model == "m" else pool.read("a", whole)
            assert torch.equal(tensor, expected)
            assert (tensor.data_ptr() == names[name].data_ptr()) == ((model, layer) == ("m", 1))
    # The intermediate itself keeps what is the path's already, wherever it lies.
    count = resident.apply(make_plan(average, pool))
    assert count.kept == 2 * 3
    assert torch.equal(logits(resident), logits(merged))
