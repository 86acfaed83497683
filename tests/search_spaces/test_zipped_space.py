"""Genes for shares of hidden units: the contract, budgets by hand, and what is no model of two side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import pool, with_sources

from evomerge.errors import ConfigError
from evomerge.merge.methods import specs
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef
from search_spaces.zipped import WRITTEN_BY, ZippedSpace

CASES: dict[str, dict[str, Any]] = {
    "shares": {},
    "a budget": {"width": 1.4},
    "a grid, and both": {"ratio": {"high": 0.8, "resolution": 0.1}, "second": {"low": 0.25, "high": 0.75}},
}


def side_by_side(layers: int = 6) -> PoolInfo:
    return with_sources(pool(layers, head=True), "zip", base=None)


class TestZippedSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = side_by_side()
        return SpaceCase(partial(ZippedSpace, info, specs(), **CASES[request.param]), info, specs())


def ratios(recipe: Recipe) -> list[float]:
    return [float(dict(own.parameters)["ratio"]) for own in recipe.slices if own.method == "fold"]  # type: ignore[arg-type]


def test_a_gene_for_each_layer_and_all_else_as_it_is() -> None:
    space = ZippedSpace(side_by_side(3), specs())
    assert [gene.name for gene in space.spec] == ["layers.0/ratio", "layers.1/ratio", "layers.2/ratio"]
    recipe = space.decode(space.spec.genome([0.0, 0.25, 1.0]))
    assert ratios(recipe) == [0.0, 0.25, 1.0]
    assert {own.method for own in recipe.slices if own.slice.component != "mlp"} == {"passthrough"}


def test_a_budget_is_kept_to_by_hand() -> None:
    space = ZippedSpace(side_by_side(2), specs(), width=1.5)
    # A mean share of one half: moved down by 0.1, up by 0.3; where one end is reached the other goes on.
    assert ratios(space.decode(space.spec.genome([0.4, 0.8]))) == pytest.approx([0.3, 0.7])
    assert ratios(space.decode(space.spec.genome([0.0, 0.4]))) == pytest.approx([0.3, 0.7])
    assert ratios(space.decode(space.spec.genome([0.0, 1.0]))) == pytest.approx([0.0, 1.0])
    tight = ZippedSpace(side_by_side(2), specs(), width=1.1)
    assert ratios(tight.decode(tight.spec.genome([0.3, 0.7]))) == pytest.approx([0.8, 1.0])
    assert ratios(ZippedSpace(side_by_side(2), specs(), width=1).decode(space.spec.initial)) == [1.0, 1.0]
    assert ratios(ZippedSpace(side_by_side(2), specs(), width=2).decode(space.spec.initial)) == [0.0, 0.0]


def test_what_is_no_model_of_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="merges within a model, and the pool has base, math, lang; one source"):
        ZippedSpace(pool(), specs())
    info = replace(side_by_side(), refs=(("zip", ModelRef(str(tmp_path))),))
    with pytest.raises(ConfigError, match=f"model 'zip' has no {WRITTEN_BY}"):
        ZippedSpace(info, specs())
    (tmp_path / WRITTEN_BY).write_text(json.dumps({"ratio": 0.5}))
    with pytest.raises(ConfigError, match=r"was written with --ratio 0\.5"):
        ZippedSpace(info, specs())
    (tmp_path / WRITTEN_BY).write_text(json.dumps({"ratio": 0}))
    assert len(ZippedSpace(info, specs()).spec) == 6
    others = tuple(((f"{own}.weight", 8),) for own in info.slices)
    with pytest.raises(ConfigError, match=r"slice layers.0.mlp of 'zip' has none of gate_up_proj"):
        ZippedSpace(replace(info, tensors=others), specs())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 2.5}, "search_space.width is 2.5"),
        ({"ratio": 0.5}, "search_space.ratio is 0.5, and nothing is searched"),
        ({"ratio": {"hight": 1}}, "search_space.ratio.*did you mean 'high'"),
        ({"ratio": [0, 1]}, "search_space.ratio"),
        ({"second": 1.5}, "search_space.second.*is 1.5"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ZippedSpace(side_by_side(), specs(), **options)
