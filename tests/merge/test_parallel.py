from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.errors import EvomergeError
from evomerge.merge.execution import parallel
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceRecipe, parameters

NAMES = ("base", "a", "b")


def opened(tiny_model: TinyModel) -> Pool:
    return open_pool({name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(NAMES)}, base="base")


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp", "della"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_bits_of_one_slice_after_the_other(
    tiny_model: TinyModel, threads: object, monkeypatch: pytest.MonkeyPatch, method: str, count: int
) -> None:
    monkeypatch.setattr(parallel, "PART", 512)  # so that tensors are divided among threads
    threads(count)  # type: ignore[operator]
    pool = opened(tiny_model)
    each = {"slerp": {}, "linear": {"weight": 0.4}}.get(method, {"weight": 0.4, "density": 0.5})
    base = Input("base") if method not in ("linear", "slerp") else None
    inputs = tuple(Input(name, None, parameters(each)) for name in ("a", "b"))
    plan = make_plan(pool.info.recipe(SliceRecipe(s, method, inputs, (), base) for s in pool.info.slices), pool)
    expected = [merge_slice(entry, pool) for entry in plan.slices]
    outs = [{name: torch.full_like(tensor, 7) for name, tensor in out.items()} for out in expected]
    seconds = merge_slices(plan.slices, Sources(pool, placement=Placement(0, 0, 10**8)), outs)
    for ours, theirs in zip(outs, expected, strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert len(seconds) == len(plan.slices)
    assert all(took > 0 for took in seconds)


def test_what_is_not_finite_is_named(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    file = pool.folder("b") / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    pool = open_pool({name: str(pool.folder(name)) for name in NAMES}, base="base")
    plan = make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    outs = [merge_slice(entry, pool) for entry in make_plan(pool.info.linear({"a": 1.0}), pool).slices]
    with pytest.raises(EvomergeError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight'.*NaN"):
        merge_slices(plan.slices, Sources(pool), outs)


def test_adapters_that_are_folded_for_a_merge_are_not_there_all_at_once(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("base")
    places = {"base": str(base)}
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        stored = load_file(base / "model.safetensors")
        factors = {}
        for layer in range(2):
            path = f"model.layers.{layer}.self_attn.q_proj"
            rows, columns = stored[f"{path}.weight"].shape
            factors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            factors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
        (tmp_path / name).mkdir()
        save_file(factors, tmp_path / name / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
        places[name] = f"{base}+{tmp_path / name}"
    pool = open_pool(places, base="base")
    inputs = tuple(Input(name, None, parameters({"weight": 0.4})) for name in ("a", "b"))
    slices = (SliceRecipe(s, "task_arithmetic", inputs, (), Input("base")) for s in pool.info.slices)
    plan = make_plan(pool.info.recipe(slices), pool)
    expected = [merge_slice(entry, pool) for entry in plan.slices]
    pool.release()
    runs, run = [], parallel._run

    def counted(jobs: list[Any], seconds: list[float]) -> None:
        runs.append([plan.slices[job.slice].tensors[job.index] for job in jobs])
        run(jobs, seconds)

    monkeypatch.setattr(parallel, "_run", counted)
    monkeypatch.setattr(parallel, "TRANSIENT", 1)
    for limit, pieces in ((0, 3), (10**9, 1)):  # what is kept is there anyway
        for name in ("a", "b"):
            checkpoint = pool.checkpoints[name]
            assert isinstance(checkpoint, FoldedCheckpoint)
            checkpoint.room.limit = limit
        runs.clear()
        outs = [{name: torch.full_like(tensor, 7) for name, tensor in out.items()} for out in expected]
        merge_slices(plan.slices, Sources(pool, placement=Placement(0, 0, 0)), outs)
        for ours, theirs in zip(outs, expected, strict=True):
            assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        assert len(runs) == pieces
        assert sum(name.endswith("q_proj.weight") for names in runs for name in names) == 2
    pool.release()
