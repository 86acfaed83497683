from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.errors import InfeasibleError
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Placement, Sources, free_memory
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.methods import METHODS, registry
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

NAMES = ("base", "a", "b")


def opened(tiny_model: TinyModel, stored: str = "float32", kind: str = "llama") -> Pool:
    folders = {name: str(tiny_model(name, kind, seed, stored)) for seed, name in enumerate(NAMES)}
    return open_pool(folders, base="base")


def recipe_of(pool: Pool, method: str, seed: int = 0) -> Recipe:
    spec = METHODS[method].spec
    each = parameters({"weight": 0.6, "density": 0.4} if spec.parameter("density") else {"weight": 0.6})
    inputs = tuple(Input(name, None, each if spec.parameter("weight") else ()) for name in ("a", "b"))
    base = Input("base") if spec.base == "required" else None
    return pool.info.recipe([SliceRecipe(s, method, inputs, (), base) for s in pool.info.slices], seed)


def tensors(plan: Plan, pool: Pool, sources: Sources | None = None) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for entry in plan.slices:
        merged |= merge_slice(entry, pool, sources=sources)
    return merged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_source_alone_is_its_file_bit_for_bit(tiny_model: TinyModel, dtype: str, kind: str) -> None:
    pool = opened(tiny_model, dtype, kind)
    merged = tensors(make_plan(pool.info.linear({"b": 1.0}), pool), pool)
    stored = load_file(pool.folder("b") / "model.safetensors")
    assert merged.keys() == stored.keys()
    for name, expected in stored.items():
        assert merged[name].dtype == getattr(torch, dtype)
        assert torch.equal(merged[name], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uniform_average(tiny_model: TinyModel, dtype: str) -> None:
    pool = opened(tiny_model, dtype)
    merged = tensors(make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool), pool)
    a, b = (load_file(pool.folder(name) / "model.safetensors") for name in ("a", "b"))
    for name, tensor in merged.items():
        expected = (0.5 * a[name].double() + 0.5 * b[name].double()).float().to(tensor.dtype)
        assert torch.equal(tensor, expected)  # halves are exact, so the sum is rounded once in any order


def test_rounds_once_to_another_dtype(tiny_model: TinyModel) -> None:
    wide = opened(tiny_model)
    narrow = open_pool({name: str(wide.folder(name)) for name in NAMES}, base="base", dtype="bfloat16")
    full = tensors(make_plan(recipe_of(wide, "ties"), wide), wide)
    for name, rounded in tensors(make_plan(recipe_of(narrow, "ties"), narrow), narrow).items():
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded, full[name].bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_whatever_is_noted(tiny_model: TinyModel, dtype: str) -> None:
    pool = opened(tiny_model, dtype)
    for method in ("ties", "slerp", "breadcrumbs", "model_stock"):
        plan = make_plan(recipe_of(pool, method), pool)
        uncached, noted = Sources(pool, placement=Placement(0, 0, 0)), Sources(pool, placement=Placement(0, 0, 10**9))
        expected = tensors(plan, pool, uncached)
        for _ in range(3):  # from scratch; orders are found; all is known
            noted.notes._small = {k: v for k, v in noted.notes._small.items() if k[0] in ("large", "ranks")}
            merged = tensors(plan, pool, noted)
            assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
        assert uncached.notes.used == 0
        assert (noted.notes.used > 0) == (method in ("ties", "breadcrumbs"))


def test_masks_depend_on_the_recipe_seed(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    first, again, other = (
        tensors(make_plan(recipe_of(pool, "dare_linear", seed), pool), pool)["lm_head.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_takes_layers_of_other_numbers(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    entry = SliceRecipe(SliceId("mlp", 0), "linear", (Input("a", 1), Input("b")))
    slices = [entry if s.slice == entry.slice else s for s in pool.info.linear({"a": 1.0}).slices]
    plan = next(s for s in make_plan(pool.info.recipe(slices), pool).slices if s.slice == entry.slice)
    merged = merge_slice(plan, pool)
    up = "model.layers.{}.mlp.up_proj.weight"
    expected = (pool.read("a", up.format(1)) + pool.read("b", up.format(0))) / 2
    torch.testing.assert_close(merged[up.format(0)], expected)


def test_writes_into_given_tensors(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    plan = make_plan(recipe_of(pool, "ties"), pool).slices[1]
    expected = merge_slice(plan, pool)
    out = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    result = merge_slice(plan, pool, out=out)
    for name, tensor in out.items():
        assert result[name] is tensor
        assert torch.equal(tensor, expected[name])
    narrow = {name: torch.zeros_like(tensor, dtype=torch.bfloat16) for name, tensor in expected.items()}
    merge_slice(plan, pool, out=narrow)
    assert all(torch.equal(narrow[name], expected[name].bfloat16()) for name in expected)


def test_a_given_tensor_of_a_wider_dtype_holds_rounded_values(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    narrow = open_pool({name: str(pool.folder(name)) for name in NAMES}, base="base", dtype="bfloat16")
    plan = make_plan(recipe_of(narrow, "linear"), narrow).slices[0]
    out = {name: torch.zeros(narrow.layout.shapes[name]) for name in plan.tensors}
    merge_slice(plan, narrow, out=out)
    for tensor in out.values():
        assert torch.equal(tensor, tensor.bfloat16().float())


def test_integer_buffers_come_from_the_configuration_model(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    original = transformers.LlamaForCausalLM.__init__

    def with_buffer(self: torch.nn.Module, *args: object, **options: object) -> None:
        original(self, *args, **options)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", with_buffer)
    folders = {}
    for seed, name in enumerate(NAMES):
        folders[name] = tiny_model(name, seed=seed)
        path = folders[name] / "model.safetensors"
        save_file({**load_file(path), "steps": torch.tensor([seed, 7])}, path)
    pool = open_pool({name: str(folder) for name, folder in folders.items()}, base="base")
    assert not pool.is_merged("steps")
    plan = make_plan(recipe_of(pool, "linear"), pool)
    merged = tensors(plan, pool)
    assert merged["steps"].tolist() == [0, 7]
    assert merged["steps"].dtype == torch.int64
    pieces = {name: piece for entry in plan.slices for name, _, piece in stream_slice(entry, pool)}
    assert torch.equal(pieces["steps"], merged["steps"])


def test_a_tensor_that_cannot_be_merged_is_named(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened(tiny_model)
    entry = make_plan(recipe_of(pool, "linear"), pool).slices[0]
    method = METHODS["linear"]

    def fails(*_: object, **__: object) -> torch.Tensor:
        raise InfeasibleError("no sum", "a sum", "change it")

    monkeypatch.setitem(registry._METHODS, "linear", replace(method, mix=fails))
    with pytest.raises(InfeasibleError, match=r"tensor 'model\.embed_tokens\.weight': no sum; a sum; change it"):
        merge_slice(entry, pool)


def test_sharded_sources(tiny_model: TinyModel, tmp_path: Path) -> None:
    whole = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(NAMES)}
    shards = {
        name: str(tiny_model(f"{name}-sharded", seed=seed, save={"max_shard_size": "8KB"}))
        for seed, name in enumerate(NAMES)
    }
    index = json.loads((Path(shards["a"]) / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    one, many = open_pool(whole, base="base"), open_pool(shards, base="base")
    assert one.info.slices == many.info.slices
    expected = tensors(make_plan(recipe_of(one, "ties"), one), one)
    merged = tensors(make_plan(recipe_of(many, "ties"), many), many)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


def test_free_memory_is_plausible() -> None:
    assert 10**7 < free_memory(torch.device("cpu")) < 10**15


def test_nothing_is_copied_to_a_device_to_find_that_it_is_not_there(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = opened(tiny_model)
    name = next(iter(pool.layout.parameters))
    copies: list[Any] = []
    to = torch.Tensor.to

    def counted(tensor: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        copies.append(given)
        return to(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    elsewhere = Sources(pool, "meta", Placement(0, 0, 0))
    assert elsewhere.aligned("a", name) is None
    assert copies == []
    assert elsewhere.flat("a", name).is_meta
    there = Sources(pool, "meta", Placement(10**9, 0, 0))
    tensor = there.aligned("a", name)
    assert tensor is not None
    assert tensor.is_meta
    assert len(copies) == 2
