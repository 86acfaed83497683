from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError, RecipeError
from evomerge.genomes.genome import Genome
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId
from search_spaces.parameter import ParameterSpace
from search_spaces.stage import StageSpace

OPTIONS: dict[str, Any] = {"method": "ties", "layer_group": "all", "components": "all"}
CASES: dict[str, dict[str, Any]] = {
    "weights": {"vary": ["weight"], "method": "ties"},
    "densities of groups": {"vary": ["density"], "method": "ties", "layer_group": 2, "components": "all"},
    "the choice of methods": {"vary": ["method", "t"], "method": ["slerp", "linear"], "components": "all"},
}


class TestStageSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(StageSpace, info, METHODS, **CASES[request.param]), info, METHODS)


def values(recipe: Recipe, name: str) -> list[Any]:
    return [dict(own.parameters)[name] for own in recipe.slices[1].inputs]


def test_a_second_stage_keeps_what_the_first_found_and_begins_there() -> None:
    info = pool()
    first = StageSpace(info, METHODS, vary=["density"], **OPTIONS)
    count = len(info.sources)
    assert next(gene.name for gene in first.spec).endswith("/density")
    groups = len(first.spec) // count
    start = first.decode(first.spec.initial)
    weights = values(start, "weight")
    found = first.decode(Genome(tuple([0.25, 0.75][:count] * groups)))
    assert (values(found, "density"), values(found, "weight")) == ([0.25, 0.75][:count], weights)

    second = StageSpace(info, METHODS, vary=["weight"], winner=found, **OPTIONS)
    assert second.decode(second.spec.initial) == found
    moved = second.decode(Genome(tuple([0.125] * len(second.spec))))
    assert (values(moved, "density"), values(moved, "weight")) == ([0.25, 0.75][:count], [0.125] * count)
    assert {name.rpartition("/")[2] for name in second.left_out} == {"density"}
    assert second.active(second.spec.initial) == {gene.name for gene in second.spec}

    assert second.encode(moved) == Genome(tuple([0.125] * len(second.spec)))
    with pytest.raises(RecipeError, match=r"density.* which is 0.25 here"):
        second.encode(start)
    other = ParameterSpace(info, METHODS, method="task_arithmetic")
    foreign = other.decode(other.spec.initial)
    with pytest.raises(RecipeError, match="method"):
        StageSpace(info, METHODS, winner=foreign, **OPTIONS)


def test_what_is_equal_in_all_models_does_not_decide_the_values_of_others() -> None:
    # Copied slices have a weight of their own in the recipe, though they are of the same group.
    info = replace(pool(), constant=(SliceId("embed"), SliceId("final_norm")))
    space = ParameterSpace(info, METHODS, **{**OPTIONS, "components": [["attn", "mlp", "norm", "embed", "final_norm"]]})
    genome = space.spec.genome([0.3] * len(space.spec))
    assert space.encode(space.decode(genome)) == genome


@pytest.mark.parametrize(
    ("vary", "message"),
    [(["wieght"], "vary has 'wieght'.*did you mean 'weight'"), ([], "vary is empty"), (["lambda"], "has no genes")],
)
def test_refuses_what_it_cannot_vary(vary: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StageSpace(pool(), METHODS, vary=vary, **OPTIONS)
