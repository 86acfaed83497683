from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge.candidate_walks import walk
from models.architectures import save_pool
from safetensors.torch import load_file

from evomerge.errors import PoolError
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident import model as assemble
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

NAMES = ("base", "a", "b")
IDS = torch.arange(3, 35).view(2, 16)
TINY, LARGE = 6000, 10**9
NOTHING = Placement(0, 0, 0)


def opened(kind: str, root: Path, dtype: str = "float32") -> Pool:
    folders = save_pool(kind, root / "models", dtype=dtype)
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


def files(pool: Pool) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in NAMES for path in sorted(pool.folder(name).glob("*.safetensors"))}


def residents(pool: Pool, root: Path) -> dict[str, Resident]:
    """One for every way of keeping slices; the last ones share theirs."""
    made = {
        f"cache {cache}, notes {notes}": Resident(pool, placement=Placement(0, 0, notes), cache=cache)
        for cache, notes in itertools.product((0, TINY, LARGE), (0, LARGE))
    }
    for cache, notes in ((0, 0), (TINY, LARGE)):
        shared = SharedCache(root / "shared", 10**6)
        name = f"shared, cache {cache}, notes {notes}"
        made[name] = Resident(pool, placement=Placement(0, 0, notes), cache=cache, shared=shared)
    return made


def poison(resident: Resident) -> None:
    """Spoil all memory that is said to be free."""
    for spare in resident._memory._spare.values():
        for tensor in itertools.chain.from_iterable(spare):
            tensor.fill_(77)


def state(resident: Resident) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in resident.model.module.state_dict().items()}


def differing(resident: Resident, expected: Mapping[str, torch.Tensor]) -> list[str]:
    own = resident.model.module.state_dict()
    assert own.keys() == expected.keys()
    return [n for n, t in expected.items() if own[n].dtype != t.dtype or not torch.equal(own[n], t)]


def logits(resident: Resident) -> torch.Tensor:
    with torch.no_grad():
        return resident.model.module(IDS).logits


def added_up(count: MergeCount) -> int:
    return count.kept + count.referenced + count.memory + count.shared + count.computed


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32"), ("mixtral", "bfloat16")]
)
def test_walks(tmp_path: Path, kind: str, dtype: str) -> None:
    pool = opened(kind, tmp_path, dtype)
    before = files(pool)
    walking = residents(pool, tmp_path)
    direct = Resident(pool, placement=NOTHING, cache=0)
    came = dict.fromkeys(walking, MergeCount())
    joined = {name for join in pool.layout.joins for name in join.names}
    for step, recipe in enumerate(walk(pool, np.random.default_rng(0), 30)):
        plan = make_plan(recipe, pool)
        direct.forget()
        count = direct.apply(plan)
        assert added_up(count) == len(plan.slices)
        assert count.memory + count.shared == 0  # kept are those that the model has in two places
        expected, answer = state(direct), logits(direct)
        for entry in plan.slices:
            for name, tensor in merge_slice(entry, pool).items():
                if name not in joined:
                    assert torch.equal(expected[pool.layout.parameters[name]], tensor)
        for name, resident in walking.items():
            count = resident.apply(plan)
            assert added_up(count) == len(plan.slices)
            assert count.bytes == sum(place.nbytes for place in resident._places)
            poison(resident)
            assert differing(resident, expected) == [], (step, name)
            if step % 5 == 0:
                assert torch.equal(logits(resident), answer)
            assert resident._memory.used <= resident._memory.budget
            assert resident.sources.notes.used <= resident.sources.notes.budget
            both = zip(count.as_dict().items(), came[name].as_dict().values(), strict=True)
            came[name] = MergeCount(**{key: a + b for (key, a), b in both})  # type: ignore[arg-type]
    assert files(pool) == before
    for name, resident in walking.items():
        sources = {model: load_file(pool.folder(model) / "model.safetensors") for model in NAMES}
        for (model, stored), tensor in resident.sources._kept.items():
            assert torch.equal(tensor, sources[model][pool.stored[model][stored]].view(-1)), name
        assert (came[name].memory > 0) == ("cache 0" not in name)
        assert (came[name].shared > 0) == ("shared" in name)
        assert came[name].referenced > 0 or f"notes {LARGE}" not in name
    assert came[f"cache {LARGE}, notes {LARGE}"].computed < came["cache 0, notes 0"].computed
    fresh = Resident(pool, placement=NOTHING, cache=0)
    fresh.apply(plan)
    assert differing(fresh, expected) == []
    for resident in walking.values():
        resident.close()
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_merges_that_fail_midway(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened(kind, tmp_path)
    walking = residents(pool, tmp_path)
    direct = Resident(pool, placement=NOTHING, cache=0)
    rng = np.random.default_rng(1)
    failed = 0

    def fails(plans: Any, sources: Any, outs: Any, *more: Any) -> Any:
        result = merge_slices(plans, sources, outs, *more)
        if rng.random() < 0.5:
            for tensor in (tensor for out in outs for tensor in out.values()):
                tensor.fill_(torch.nan)
            raise PoolError("the disk went away")
        return result

    for recipe in walk(pool, np.random.default_rng(2), 25):
        plan = make_plan(recipe, pool)
        direct.forget()
        direct.apply(plan)
        for name, resident in walking.items():
            with monkeypatch.context() as patch:
                patch.setattr(assemble, "merge_slices", fails)
                try:
                    resident.apply(plan)
                except PoolError:
                    failed += 1
                    if rng.random() < 0.5:
                        continue  # on to the next candidate, from a mixture of two
            resident.apply(plan)
            poison(resident)
            assert differing(resident, state(direct)) == [], name
    assert failed > 20


def alone(pool: Pool, model: str) -> Plan:
    return make_plan(pool.info.linear({model: 1.0}), pool)


def test_sources_are_referenced_where_they_lie(tmp_path: Path) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool, placement=Placement(0, 0, LARGE), cache=LARGE)
    average = make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    for _ in range(3):  # at the latest when it is asked for again
        resident.apply(alone(pool, "a"))
        resident.apply(average)
    count = resident.apply(alone(pool, "a"))
    assert count.referenced == len(pool.info.slices)
    module = resident.model.module
    for name in pool.layout.parameters:
        kept = resident.sources.aligned("a", name)
        assert kept is not None
        assert module.get_parameter(name).data_ptr() == kept.data_ptr()
        assert torch.equal(module.get_parameter(name), pool.read("a", name))
    resident.apply(average)
    poison(resident)
    resident.apply(make_plan(pool.info.linear({"a": 0.3, "b": 0.7}), pool))
    poison(resident)
    for name in pool.layout.parameters:
        kept = resident.sources.aligned("a", name)
        assert kept is not None
        assert torch.equal(kept.view(-1), pool.read("a", name).view(-1))
    assert resident.apply(alone(pool, "a")).referenced == len(pool.info.slices)


def test_a_source_is_copied_where_there_is_no_room(tmp_path: Path) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool, placement=Placement(0, 0, 3000), cache=0)
    for model in ("a", "b", "a", "b", "a"):
        count = resident.apply(alone(pool, model))
        assert added_up(count) == len(pool.info.slices)
        assert resident.sources.notes.used <= 3000
        for name in pool.layout.parameters:
            assert torch.equal(resident.model.module.get_parameter(name), pool.read(model, name))


def test_two_layers_that_are_the_same_slice(tmp_path: Path) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool, placement=NOTHING, cache=LARGE)
    rng = np.random.default_rng(3)
    plans = [make_plan(recipe, pool) for recipe in walk(pool, rng, 60)]
    repeats = [plan for plan in plans if len({entry.key for entry in plan.slices}) < len(plan.slices)]
    assert len(repeats) > 3
    for plan in (*repeats, *repeats[::-1]):
        resident.apply(plan)
        poison(resident)
        for entry in plan.slices:
            for name, tensor in merge_slice(entry, pool).items():
                assert torch.equal(resident.model.module.get_parameter(name), tensor)


def test_nothing_is_computed_twice_with_room_for_all(tmp_path: Path) -> None:
    pool = opened("llama", tmp_path)
    resident = Resident(pool, placement=NOTHING, cache=LARGE)
    plans = [make_plan(pool.info.linear({"a": w, "b": 1 - w}), pool) for w in (0.2, 0.4, 0.6)]
    everything = len(pool.info.slices)
    assert [resident.apply(plan).computed for plan in plans] == [everything] * 3
    for _ in range(40):  # what comes back makes the cache grow
        for plan in plans:
            resident.apply(plan)
    for plan in (*plans, *plans[::-1]):
        count = resident.apply(plan)
        assert count.computed == 0
        assert count.saved > 0
    resident.forget()
    assert resident.apply(plans[0]).kept == 0
