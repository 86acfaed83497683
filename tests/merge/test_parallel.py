from __future__ import annotations

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
