"""Merging on a pretended GPU: the right device, few waits, no copy for nothing, budgets that hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_merge_methods import Case
from merge.gpu_recipes import GPU_CASES, everywhere, small_pool, weights
from merge.path_models import IDS, LAYERS, open_sources, path_recipe, random_path
from pretended_gpu import CUDA, PretendedGpu

from evomerge.errors import PoolError
from evomerge.merge.execution import sources as sources_module
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident import budgets
from evomerge.merge.resident.model import Resident
from evomerge.models.pool import Pool

MUCH = 10**9
PLACES = {
    "on the device": Placement(MUCH, 0, MUCH, MUCH),
    "pinned": Placement(0, MUCH, MUCH, MUCH),
    "mapped": Placement(0, 0, MUCH, MUCH),
}
NOTED = {"model_stock": 10, "lora_lego": 200, "lora_factors": 60}
"""Waits for statistics of the pool that the second candidate is the first to ask for, for clusters on the host, and for
the ranks of models that are no adapters."""
MADE_ON_THE_HOST = ("lora_lego", "low_rank_noise")  # clusters, and factors drawn from a seed


@pytest.fixture
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return small_pool(llamas(layers=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_every_method_stays_on_the_device_with_the_bits_of_torch_on_the_processor(
    case: Case, pool: Pool, gpu: PretendedGpu
) -> None:
    there = Resident(pool, "cuda", placement=PLACES["on the device"], cache=0)
    here = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    for seed in range(2):
        plan = everywhere(case, pool, seed)
        gpu.reset()
        there.apply(plan)
        counts = gpu.counts
        assert not counts.wasted
        if seed:
            assert counts.waits.total() <= NOTED.get(case.method.spec.name, 1), counts.waits
            assert not counts.copies or case.method.spec.name in MADE_ON_THE_HOST
        assert all(tensor.device == CUDA for tensor in there.model.module.parameters())
        here.apply(plan)
        theirs = weights(here)
        few = 1e-3 if case.method.spec.name == "pcb" else 0.0  # numpy's exponentials are not torch's
        for name, tensor in weights(there).items():
            assert (tensor != theirs[name]).double().mean() <= few, name


@pytest.mark.parametrize("place", PLACES)
def test_sources_are_copied_once_and_only_where_they_are_read(place: str, pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=PLACES[place], cache=0)
    tensors = len(pool.layout.parameters)
    for step, recipe in enumerate([{"a": 0.3, "b": 0.7}, {"a": 0.4, "b": 0.6}, {"a": 1.0}, {"c": 1.0}]):
        gpu.reset()
        count = resident.apply(make_plan(pool.info.linear(recipe), pool))
        counts = gpu.counts
        if place == "on the device":
            expected = (2 * tensors, 0, 0, tensors)[step]
            assert (count.referenced > 0) == (step > 1)
        else:
            expected = (2 if step < 2 else 1) * tensors
        assert counts.copies.total() == expected
        assert counts.pageable.total() == (0 if place == "pinned" else expected)
        assert counts.waits.total() == (1 if count.computed else 0)
        assert not counts.wasted


def test_the_model_is_loaded_straight_to_the_device(pool: Pool, gpu: PretendedGpu) -> None:
    model = pool.checkpoints["base"].nbytes
    Resident(pool, "cuda", placement=PLACES["mapped"], cache=0)
    assert gpu.counts.copies["evomerge/merge/resident/loading.py load_module"] >= len(pool.layout.parameters)
    assert gpu.peak < 2.2 * model  # the caching allocator is warmed up by as much, or one slice is compared
    assert not gpu.counts.wasted


def test_copied_sources_go_with_their_slice(llamas: Callable[..., dict[str, Path]], gpu: PretendedGpu) -> None:
    pool = small_pool(llamas(layers=8))
    resident = Resident(pool, "cuda", placement=PLACES["mapped"], cache=0)
    model = pool.checkpoints["base"].nbytes
    for share in (0.3, 0.6):
        gpu.reset()
        resident.apply(make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool))
        assert gpu.peak < 1.2 * model


def test_paths_with_repeated_layers(tmp_path: Path, gpu: PretendedGpu) -> None:
    pool, rng = open_sources(tmp_path, "llama"), np.random.default_rng(0)
    there = Resident(pool, "cuda", "eager", PLACES["on the device"])
    here = Resident(pool, attn_implementation="eager")
    ids = gpu.put(IDS)
    for depth in (2 * LAYERS + 1, 1, LAYERS, 2 * LAYERS + 1):
        plan = make_plan(path_recipe(pool, random_path(rng, depth)), pool)
        gpu.reset()
        there.apply(plan)
        assert gpu.counts.waits.total() <= 1
        here.apply(plan)
        found, expected = there.model.module(ids).logits.cpu(), here.model.module(IDS).logits
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
        assert not gpu.counts.wasted


def test_slices_that_come_back_cost_nothing(pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=PLACES["on the device"], cache=MUCH)
    resident._memory.allowed = MUCH
    plans = [make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool) for share in (0.3, 0.6)]
    for plan in plans:
        resident.apply(plan)
    gpu.reset()
    count = resident.apply(plans[0])
    assert (count.computed, count.memory) == (0, len(pool.info.slices))
    assert (gpu.counts.kernels, gpu.counts.waits.total(), gpu.counts.copies.total()) == (0, 0, 0)


def test_what_is_not_finite_is_found_at_the_one_wait_and_nothing_of_it_is_kept(
    tiny_model: Any, gpu: PretendedGpu
) -> None:
    from safetensors.torch import load_file, save_file

    folders = {name: tiny_model(name, seed=seed) for seed, name in enumerate(("base", "a"))}
    file = folders["a"] / "model.safetensors"
    content = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    content[name][0, 0] = float("inf")
    save_file(content, file, {"format": "pt"})
    pool = small_pool(folders)
    resident = Resident(pool, "cuda", placement=PLACES["on the device"], cache=MUCH)
    plan = make_plan(pool.info.linear({"base": 0.5, "a": 0.5}), pool)
    for _ in range(2):
        with pytest.raises(Exception, match=name):
            resident.apply(plan)
    sound = make_plan(pool.info.linear({"base": 1.0}), pool)
    resident.apply(sound)
    here = Resident(pool)
    here.apply(sound)
    theirs = weights(here)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(resident).items())


def test_sources_and_slices_get_what_the_first_scored_candidate_leaves(
    pool: Pool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pool.checkpoints["base"].nbytes
    resident = Resident(pool, "cuda")
    gpu.memory = 7 * model
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: gpu.peak)  # the allocator keeps what it had
    resident.apply(make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool))
    assert (resident.sources.device_bytes, resident._memory.budget) == (0, 0)
    peak = gpu.peak
    resident.use_room()
    left = budgets.share_of(gpu.memory, 1) - peak
    assert resident.sources.placement.device == min(left, pool.nbytes)
    resident.apply(make_plan(pool.info.linear({"a": 0.4, "b": 0.6}), pool))
    assert 0 < resident.sources.device_bytes <= left
    resident.apply(make_plan(pool.info.linear({"b": 0.4, "c": 0.6}), pool))
    assert gpu.used <= gpu.memory
    assert resident.sources.placement.host > 0 or resident.sources.placement.device == pool.nbytes


def test_workers_of_a_gpu_share_it(gpu: PretendedGpu) -> None:
    gpu.memory = 24 * 10**9
    assert budgets.room_on([CUDA], 1) == pytest.approx(0.95 * 24e9, rel=1e-6)
    assert budgets.room_on([CUDA], 2) == pytest.approx(0.95 * 12e9, rel=1e-6)
    assert budgets.room_on([CUDA], 1, 10**10) == pytest.approx(0.95e10, rel=1e-6)
    ours = gpu._take(3 * 10**9)  # a worker's model and the peak of its forwards
    assert budgets.room_on([CUDA], 2) == pytest.approx(0.95 * 12e9 - 3e9, rel=1e-6)
    found = budgets.divide(budgets.room_on([CUDA], 2), 0, 4 * 10**9)
    assert 2 * (3e9 + found.placement.device + found.cache) < 24e9
    del ours


def test_memory_is_let_go_in_order(pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=PLACES["on the device"], cache=MUCH)
    for share in (0.3, 0.6):
        resident.apply(make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool))
    before = gpu.used
    assert resident.model.spare()
    assert len(resident._memory) == 0
    assert resident.sources.device_bytes > 0
    assert resident.model.spare()
    assert resident.sources.device_bytes == 0
    assert gpu.used < before - 2 * pool.checkpoints["a"].nbytes
    assert not resident.model.spare()


def test_a_closed_model_gives_its_memory_back_whoever_holds_it(pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=PLACES["on the device"], cache=MUCH)
    resident.apply(make_plan(pool.info.linear({"a": 0.3, "b": 0.7}), pool))
    module = resident.model.module
    resident.close()
    assert gpu.used < pool.checkpoints["base"].nbytes // 50
    assert module is resident.model.module


def test_a_model_that_is_too_large_says_spread(pool: Pool, gpu: PretendedGpu) -> None:
    gpu.memory = pool.checkpoints["base"].nbytes // 2
    with pytest.raises(PoolError, match=r"of weights in bfloat16, and .* are free; .*evaluator.device=spread"):
        Resident(pool, "cuda")


def test_the_host_is_asked_for_its_share_only(pool: Pool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "free_memory", lambda device: 8 * 10**6)
    assert sources_module.HOST_SHARE == 0.25
    first = budgets.first_budgets(CUDA, workers=4)
    assert (first.placement.device, first.placement.host, first.cache) == (0, 0, 0)
    found = budgets.divide(0, 2 * 10**6, 10**9)
    assert (found.placement.device, found.placement.host) == (0, 500_000)
