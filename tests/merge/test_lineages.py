"""Lineages as they are scored and as they are written: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evomerge.candidate import Candidate, Evaluation
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.stage_slices import stages_of
from evomerge.merge.methods import specs
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident import kept_stages
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.strategies.m2n2 import M2N2
from search_spaces.lineage import LineageSpace

Tensors = dict[str, torch.Tensor]


def opened(llamas: Callable[..., dict[str, Path]], **options: Any) -> Pool:
    folders = llamas(**options)
    return open_pool({name: str(folder) for name, folder in folders.items()}, "base")


def evolve(pool: Pool, resident: Resident, evaluations: int, **options: Any) -> tuple[Recipe, Tensors, int]:
    """Search with M2N2; the best recipe, the tensors that were scored, and its generation."""
    space = LineageSpace(pool.info, specs(), **options)
    strategy = M2N2(space.spec, (Objective("score"),), seed=1, size=6)
    resident.apply(make_plan(pool.info.linear(dict.fromkeys(pool.info.sources, 1 / len(pool.info.sources))), pool))
    goal = {name: p.detach().clone().float() for name, p in resident.model.module.named_parameters()}
    best: tuple[float, Recipe, Tensors, int] | None = None
    number = 0
    while number < evaluations:
        for proposal in strategy.ask():
            recipe = space.decode(proposal.genome)
            resident.apply(make_plan(recipe, pool))
            scored = {name: p.detach().clone() for name, p in resident.model.module.named_parameters()}
            # Items that different parents are good at: how near each tensor is to the mean of all seeds.
            items = np.array([-float((p.float() - goal[name]).abs().mean()) for name, p in scored.items()])
            evaluation = Evaluation(number, "ok", objectives={"score": float(items.mean())}, items={"toy/near": items})
            strategy.tell(Candidate(number, recipe, proposal.genome, proposal.parents), evaluation)
            if best is None or items.mean() > best[0]:
                best = float(items.mean()), recipe, scored, proposal.genome.generation  # type: ignore[attr-defined]
            number += 1
    assert best is not None
    return best[1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"split": "element", "chromosomes": [["attn"], ["mlp"]]}, {"method": "linear"}],
    ids=["slerp", "flattened"],
)
def test_the_best_is_written_in_a_fresh_process_bit_for_bit(
    llamas: Callable[..., dict[str, Path]], tmp_path: Path, options: Any
) -> None:
    pool = opened(llamas, dtype=torch.bfloat16)
    recipe, scored, generation = evolve(pool, Resident(pool), 24, **options)
    assert generation > 0
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "evomerge", "merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == scored.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, scored[name]), name


def test_no_memory_and_a_deep_graph_give_the_same_tensors(llamas: Callable[..., dict[str, Path]]) -> None:
    pool = opened(llamas)
    kept, uncached = Resident(pool), Resident(pool, cache=0)
    recipe, scored, _ = evolve(pool, kept, 40, split="tensor")
    uncached.apply(make_plan(recipe, pool))
    for name, parameter in uncached.model.module.named_parameters():
        assert torch.equal(parameter, scored[name]), name


def test_a_graph_with_a_million_paths_is_made_step_by_step(llamas: Callable[..., dict[str, Path]]) -> None:
    pool = opened(llamas)
    space = LineageSpace(pool.info, specs(), seeds=["a", "b"])
    one, two = space.spec.seed("a"), space.spec.seed("b")
    for _ in range(80):  # 2^80 paths back to the seeds, deeper than recursion would go
        one, two = space.spec.child(one, two, [0.3, 0.6]), space.spec.child(two, one, [0.4, 0.2])
    plan = make_plan(space.decode(one), pool)
    entry = plan.slices[1]
    assert len(stages_of(entry)) == 158
    assert entry.models == ("a", "b")
    merged = merge_slice(entry, pool)
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    again = make_plan(space.decode(space.spec.child(one, two, [0.3, 0.6])), pool)
    sources = again.slices[1].parts[0].sources
    assert sources[0].made is plan.slices[1] or sources[0].made == plan.slices[1]


def test_a_parent_that_was_a_candidate_is_not_merged_again(
    llamas: Callable[..., dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the worker that had it nor, where all is kept, by one of the next session."""
    pool = opened(llamas)
    space = LineageSpace(pool.info, specs(), seeds=["a", "b"])
    a, b = space.spec.seed("a"), space.spec.seed("b")
    parent = space.spec.child(a, b, [0.3, 0.6])
    child = space.spec.child(parent, b, [0.4, 0.2])
    merged: list[str] = []

    def counted(entry: SlicePlan, *rest: Any, **more: Any) -> Any:
        merged.append(entry.key)
        return merge_slice(entry, *rest, **more)

    monkeypatch.setattr(kept_stages, "merge_slice", counted)

    def tensors(resident: Resident, *genomes: Any) -> Tensors:
        for genome in genomes:
            resident.apply(make_plan(space.decode(genome), pool))
        return {name: p.detach().clone() for name, p in resident.model.module.named_parameters()}

    expected = tensors(Resident(pool, cache=0), child)
    every = len(merged)
    for number, genomes in enumerate([(parent, child), (parent, a, child), (child,)]):
        merged.clear()
        cache = SharedCache(tmp_path / "shared", 10**8, temporary=False, keep_all=True)
        own = tensors(Resident(pool, shared=cache if number else None), *genomes)
        assert len(merged) < every if number == 0 else merged == []  # a worker of its own keeps a quarter at first
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())
        cache.close()
