"""Sources copied to a pretended GPU on a stream of their own, one slice ahead of what is merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from merge.candidate_walks import walk
from merge.gpu_recipes import small_pool, weights
from pretended_gpu import PretendedGpu

from evomerge.errors import EvomergeError
from evomerge.merge.execution.copies_ahead import Staging, padded
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

MUCH = 10**9


@pytest.fixture
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return small_pool(llamas(layers=3, dtype=torch.bfloat16))


def pinned(staging: int, device: int = 0) -> Placement:
    return Placement(device, MUCH, MUCH, MUCH, staging)


def both(pool: Pool, buffer: int, share: float = 0.3) -> list[list[int]]:
    """For every slice of a merge of two models, how many tensors are copied at a time where a buffer has room."""
    found = []
    plan = make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool)
    for entry in sorted(plan.slices, key=lambda entry: entry.slice.layer is not None):  # layers come last
        used, batches = 0, [0]
        for name in entry.tensors:
            size = 2 * padded(2 * torch.Size(pool.layout.shapes[name]).numel())
            if size > buffer:
                continue
            if used + size > buffer:
                used, batches = 0, [*batches, 0]
            used += size
            batches[-1] += 2
        found.append([batch for batch in batches if batch])
    return found


def ahead(log: list[tuple[str, int]]) -> list[int]:
    """How many copies were launched at a time, where each batch but the first is launched before the merge of the one
    before it, and after all that reads what was in its buffer."""
    order = [entry for entry in log if entry[0] != "kernel" or entry[1] == 0]
    assert order[:2] == [("record", 0), ("record", 0)]  # whatever was launched before is over, for either buffer
    at, found = 2, list[int]()

    def take(*expected: tuple[str, int]) -> None:
        nonlocal at
        assert tuple(order[at : at + len(expected)]) == expected, order[at : at + 6]
        at += len(expected)

    def batch() -> None:
        nonlocal at
        take(("wait", 1))
        count = 0
        while order[at] == ("copy", 1):
            count, at = count + 1, at + 1
        take(("record", 1))
        found.append(count)

    batch()
    first = True
    while True:
        if not first:
            take(("record", 0))
        take(("wait", 0))
        first = False
        if order[at] != ("wait", 1):  # the last one
            take(("kernel", 0))
            assert not any(stream for _, stream in order[at:])
            return found
        batch()
        take(("kernel", 0))


@pytest.mark.parametrize("buffer", [1 << 24, 1 << 14, 1 << 12])
def test_the_next_slice_is_on_its_way_while_one_is_merged(pool: Pool, gpu: PretendedGpu, buffer: int) -> None:
    there = Resident(pool, "cuda", placement=pinned(2 * buffer), cache=0)
    here = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    expected = [batch for batches in both(pool, buffer) for batch in batches]
    assert max(expected) == {1 << 24: 8, 1 << 14: 8, 1 << 12: 4}[buffer], expected
    for share in (0.3, 0.6):
        plan = make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool)
        gpu.reset()
        there.apply(plan)
        counts, log = gpu.counts, gpu.log
        copies = [entry for entry in log if entry[0] == "copy"]
        assert counts.copies.total() == len(copies) == 2 * len(pool.layout.parameters)
        assert sum(stream for _, stream in copies) == sum(expected)
        assert (counts.waits.total(), counts.pageable.total(), counts.wasted.total()) == (1, 0, 0)
        if sum(expected) == len(copies):
            assert ahead(log) == expected
        here.apply(plan)
        theirs = weights(here)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(there).items())


def test_only_what_changes_and_is_not_there_is_copied(pool: Pool, gpu: PretendedGpu) -> None:
    device = pool.checkpoints["a"].nbytes
    resident = Resident(pool, "cuda", placement=pinned(1 << 20, device), cache=0)
    names = list(pool.layout.parameters)
    for share in (0.3, 0.6):
        gpu.reset()
        resident.apply(make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool))
    here = {key for key, tensor in resident.sources._kept.items() if tensor.device.type == "cpu"}
    assert 0 < len(here) < 2 * len(names)
    assert gpu.counts.copies.total() == len(here)
    gpu.reset()
    resident.apply(make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool))
    assert not gpu.counts.copies
    assert gpu.log == []


@pytest.mark.parametrize("forgotten", ["awaited", "was_read"])
def test_a_forgotten_wait_is_found(
    pool: Pool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    monkeypatch.setattr(Staging, forgotten, lambda staging, turn: None)
    resident = Resident(pool, "cuda", placement=pinned(1 << 20), cache=0)
    with pytest.raises(RuntimeError, match="race"):
        resident.apply(make_plan(pool.info.linear({"a": 0.3, "b": 0.7}), pool))
    gpu.races.clear()


@pytest.mark.slow
def test_lineages_read_what_they_take_themselves(pool: Pool, gpu: PretendedGpu) -> None:
    there = Resident(pool, "cuda", placement=pinned(1 << 18), cache=10**6)
    here = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    for recipe in walk(pool, np.random.default_rng(3), 6):
        plan = make_plan(recipe, pool)
        gpu.reset()
        there.apply(plan)
        assert not gpu.counts.wasted
        here.apply(plan)
        theirs = weights(here)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(there).items())


def _too_large(slice_: SliceId) -> SliceRecipe:
    inputs = (Input("a", None, parameters({"weight": 1e38})),)
    return SliceRecipe(slice_, "task_arithmetic", inputs, parameters({"lambda": 1e6}), Input("base"))


def test_after_a_failed_candidate_the_next_is_right(pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=pinned(1 << 20), cache=0)
    with pytest.raises(EvomergeError, match="beyond the range"):
        resident.apply(make_plan(pool.info.recipe([_too_large(s) for s in pool.info.slices]), pool))
    plan = make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    resident.apply(plan)
    here = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    here.apply(plan)
    theirs = weights(here)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(resident).items())


def test_buffers_go_when_memory_runs_out(pool: Pool, gpu: PretendedGpu) -> None:
    resident = Resident(pool, "cuda", placement=pinned(1 << 20), cache=0)
    plans = [make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool) for share in (0.3, 0.4, 0.5)]
    resident.apply(plans[0])
    while resident._memory.clear():
        pass
    used = gpu.used
    assert resident.sources.release()
    assert (used - gpu.used, resident.sources.placement.staging) == (1 << 20, 1 << 19)
    resident.apply(plans[1])
    assert resident.sources.release()
    assert not resident.sources.release()
    assert resident.sources.placement.staging == 0
    gpu.reset()
    resident.apply(plans[2])
    assert {stream for _, stream in gpu.log} == {0}


def test_a_tensor_that_cannot_be_read_is_named(pool: Pool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Resident(pool, "cuda", placement=pinned(1 << 20), cache=0)
    bad, read = "model.layers.1.mlp.up_proj.weight", Pool.read

    def reading(pool: Pool, model: str, name: str) -> torch.Tensor:
        if name == bad:
            raise EvomergeError("its file is gone")
        return read(pool, model, name)

    monkeypatch.setattr(Pool, "read", reading)
    with pytest.raises(EvomergeError, match=f"tensor '{bad}': its file is gone"):
        resident.apply(make_plan(pool.info.linear({"a": 0.3, "b": 0.7}), pool))
