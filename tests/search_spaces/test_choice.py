from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.recipes.slices import SliceId
from search_spaces.choice import ChoiceSpace

CASES: dict[str, dict[str, Any]] = {
    "every component": {},
    "whole layers, the base too": {"models": ["base", "lang", "math"], "components": "all"},
    "feed-forward layers in pairs": {"layer_group": 2, "components": [["mlp"], ["attn", "norm"]]},
}


class TestChoiceSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(ChoiceSpace, info, METHODS, **CASES[request.param]), info, METHODS)


def test_every_slice_is_that_of_the_chosen_model() -> None:
    info = pool(2)
    space = ChoiceSpace(info, METHODS, components="all")
    assert [gene.name for gene in space.spec] == ["embed+final_norm/model", "layers.0/model", "layers.1/model"]
    assert space.spec.initial.values == ("math", "math", "math")
    recipe = space.decode(space.spec.genome(["math", "lang", "math"]))
    chosen = {str(entry.slice): [own.model for own in entry.inputs] for entry in recipe.slices}
    assert chosen.pop("layers.0.mlp") == chosen.pop("layers.0.attn") == chosen.pop("layers.0.norm") == ["lang"]
    assert set(map(tuple, chosen.values())) == {("math",)}
    assert space.decode(space.spec.initial).slices == info.linear({"math": 1.0}).slices


def test_equal_slices_have_no_genes() -> None:
    info = pool(2)
    equal = tuple(own for own in info.slices if own.component != "mlp")
    space = ChoiceSpace(replace(info, constant=equal), METHODS)
    assert [gene.name for gene in space.spec] == ["layers.0.mlp/model", "layers.1.mlp/model"]
    assert "layers.0.attn/model" in space.left_out
    recipe = space.decode(space.spec.genome(["lang", "lang"]))
    assert {entry.slice: entry.inputs[0].model for entry in recipe.slices}[SliceId("embed")] == "math"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ["math", "lnag"]}, r"models\[1\] is 'lnag'.*lang"),
        ({"models": ["math"]}, "two or more"),
        ({"models": ["math", "math"]}, "each once"),
        ({"layer_group": 9}, "layer_group is 9"),
        ({"components": "alll"}, "components is 'alll'"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ChoiceSpace(pool(), METHODS, **options)


def test_pools_without_a_choice() -> None:
    info = pool(2)
    with pytest.raises(ConfigError, match="all slices are equal"):
        ChoiceSpace(replace(info, constant=info.slices), METHODS)
    with pytest.raises(ConfigError, match="differ in their number of layers"):
        ChoiceSpace(replace(info, depths=(("lang", 3),)), METHODS)
