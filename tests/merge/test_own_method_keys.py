"""Content keys of methods of one's own: they hold the code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import TinyModel

from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.methods import registry
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

NORM0 = SliceId("norm", 0)


@pytest.fixture
def pool(tiny_model: TinyModel) -> Pool:
    return open_pool({name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("a", "b"))})


def planned(pool: Pool) -> SlicePlan:
    own = SliceRecipe(NORM0, "lopsided", (Input("a"), Input("b")))
    slices = [own if s.slice == NORM0 else s for s in pool.info.linear({"a": 1.0}).slices]
    return make_plan(pool.info.recipe(slices), pool).by_slice[NORM0]


def load(own_module: Path, text: str) -> None:
    """Register the methods of a module of this text."""
    registry._METHODS.pop("lopsided", None)
    sys.modules.pop("lopsided_methods", None)
    own_module.write_text(text)
    importlib.invalidate_caches()
    importlib.import_module("lopsided_methods")


MODULE = """
from evomerge.merge.methods import merge_method


@merge_method("lopsided", summary="more of the first", min_inputs=2, max_inputs=2, elementwise=True)
def lopsided(inputs, base, *, context):
    return inputs[0] * {share} + inputs[1]
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "lopsided_methods.py"
    registry._METHODS.pop("lopsided", None)
    sys.modules.pop("lopsided_methods", None)


def test_keys_hold_the_code_of_ones_own_methods(pool: Pool, own_module: Path) -> None:
    keys, values = [], []
    for share in ("0.5", "0.25", "0.125 * 2", "0.5"):
        load(own_module, MODULE.format(share=share))
        plan = planned(pool)
        keys.append(plan.key)
        values.append(merge_slice(plan, pool)[plan.tensors[0]])
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]
    assert torch.equal(values[0], values[3])
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[1], values[2])


def test_keys_hold_the_code_of_a_function_beside_a_borrowed_mix(pool: Pool, own_module: Path) -> None:
    keys = []
    for share in ("0.5", "0.25"):
        text = MODULE.format(share=share).replace("elementwise=True", "elementwise=True, mix=borrowed")
        load(own_module, "from evomerge.merge.methods.model_stock import _mix as borrowed\n" + text)
        keys.append(planned(pool).key)
    assert keys[0] != keys[1]
