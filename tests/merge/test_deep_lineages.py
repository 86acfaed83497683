"""A lineage that is deeper than Python's stack is read, planned, merged and written like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinyModel

from evomerge.cli.main import main
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.recipes import Input, Recipe, SliceRecipe, dump_recipe, load_recipe, parameters

DEPTH = 3000  # three times Python's stack; ten thousand take a few minutes


@pytest.mark.nightly
@pytest.mark.slow
def test_from_the_file_to_the_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = open_pool({name: str(tiny_model(name, seed=seed)) for seed, name in enumerate("ab")})
    half = parameters({"weight": 0.5})
    last: Recipe | None = None
    for number in range(DEPTH):
        inputs = Input("a" if last is None else f"g{number - 1}", None, half), Input("b", None, half)
        slices = tuple(SliceRecipe(entry, "linear", inputs) for entry in pool.info.slices)
        stages = () if last is None else ((f"g{number - 1}", last),)
        last = Recipe(tuple(pool.info.refs), slices, "float32", "a", intermediates=stages)
    assert last is not None
    text = dump_recipe(last)
    assert load_recipe(text) == last
    plan = make_plan(last, pool)
    assert {entry.models for entry in plan.slices} == {("a", "b")}
    resident = Resident(pool)
    resident.apply(plan)
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in resident.model.module.named_parameters():
        if name in written:
            assert torch.equal(parameter, written[name]), name
    # Half of what was there and half of b, so often: b, up to the last bit.
    other = load_file(pool.folder("b") / "model.safetensors")
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-7)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"A lineage of {DEPTH - 1:,} merges. `evomerge_recipe.yaml`" in card
    assert len(card) < 10_000
