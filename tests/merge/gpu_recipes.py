"""Recipes that put one merge method on every slice of a small pool, for what is counted on a pretended GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from contracts.test_merge_methods import CASES, Case

from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters

NAMES = "abc"
GPU_CASES = [case for case in CASES if case.method.spec.statistics is None]
"""Methods but those that read statistics of data, which the small pool has none of."""


def small_pool(folders: dict[str, Path]) -> Pool:
    """A base and models `a`, `b` and `c`."""
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


def weights(resident: Resident) -> dict[str, torch.Tensor]:
    """The parameters of the resident model, in host memory."""
    return {name: tensor.detach().cpu() for name, tensor in resident.model.module.named_parameters()}


def everywhere(case: Case, pool: Pool, seed: int) -> Plan:
    """The plan of `everywhere_recipe`."""
    return make_plan(everywhere_recipe(case, pool, seed), pool)


def everywhere_recipe(case: Case, pool: Pool, seed: int) -> Recipe:
    """A method on every slice, its parameters drawn from their bounds; of what is derived, searched ones."""
    each, shared = case.settings(seed)
    if case.method.derived is not None:
        searched = {p.name for p in case.method.spec.parameters if p.searched}
        shared = {name: value for name, value in shared.items() if name in searched}
        each = [{name: value for name, value in own.items() if name in searched} for own in each]
    if "iterations" in (p.name for p in case.method.spec.parameters):
        shared["iterations"] = 3  # one step is like another
    shared.pop("scope", None)  # beyond a tensor a threshold is looked up with the host, once (see test_scopes)
    inputs = tuple(Input(name, None, parameters(own)) for name, own in zip(NAMES[: case.count], each, strict=True))
    base = Input("base") if case.based else None
    slices = [SliceRecipe(s, case.method.spec.name, inputs, parameters(shared), base) for s in pool.info.slices]
    return pool.info.recipe(slices)
