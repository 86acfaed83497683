"""LCSC's search space: coefficients of checkpoints, and where a search begins."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.genomes.coefficients import moving_average
from evomerge.genomes.genome import Genome
from evomerge.recipes.pool_info import UNIFORM, PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef, SliceId
from search_spaces.checkpoints import CheckpointSpace, CoefficientSpace


def series(count: int = 4, layers: int = 2) -> PoolInfo:
    refs = tuple((f"step-{n}", ModelRef(f"out/{n}", fingerprint=f"sha256:{n}")) for n in range(1, count + 1))
    return replace(pool(layers), refs=refs, sources=tuple(name for name, _ in refs[1:]), base="step-1")


def weights(recipe: Recipe, slice_: SliceId) -> list[float]:
    entry = next(own for own in recipe.slices if own.slice == slice_)
    return [float(dict(own.parameters)["weight"]) for own in entry.inputs]


class TestWholeModel(SearchSpaceContract):
    @pytest.fixture
    def case(self) -> SpaceCase:
        return SpaceCase(functools.partial(CheckpointSpace, series(), METHODS), series(), METHODS)


class TestByLayer(SearchSpaceContract):
    @pytest.fixture
    def case(self) -> SpaceCase:
        build = functools.partial(CheckpointSpace, series(), METHODS, layer_group="layer", cap=3.0)
        return SpaceCase(build, series(), METHODS)


def test_recipes_are_linear_with_coefficients_that_sum_to_one() -> None:
    space = CheckpointSpace(series(), {})
    recipe = space.decode(Genome((-0.5, 0.25, 1.5)))
    assert {entry.method for entry in recipe.slices} == {"linear"}
    assert {entry.parameters for entry in recipe.slices} == {(("normalize", False),)}
    assert all(weights(recipe, entry.slice) == [-0.25, -0.5, 0.25, 1.5] for entry in recipe.slices)
    assert [own.model for own in recipe.slices[0].inputs] == ["step-1", "step-2", "step-3", "step-4"]


def test_layer_groups_have_coefficients_of_their_own() -> None:
    space = CheckpointSpace(series(2), {}, layer_group="layer", components="all")
    assert [gene.name for gene in space.spec] == [
        *("embed+final_norm/step-2/weight", "layers.0/step-2/weight", "layers.1/step-2/weight"),
    ]
    recipe = space.decode(Genome((0.5, -1.0, 2.0)))
    assert weights(recipe, SliceId("final_norm")) == [0.5, 0.5]
    assert weights(recipe, SliceId("mlp", 0)) == [2.0, -1.0]
    assert weights(recipe, SliceId("attn", 1)) == [-1.0, 2.0]


def test_a_search_starts_from_moving_averages_the_last_and_the_mean_which_are_its_baselines() -> None:
    space = CheckpointSpace(series(), {}, rates=[0.9, 0.5, 0.8])
    assert list(space.starts) == ["step-4", UNIFORM, "EMA 0.5", "EMA 0.8", "EMA 0.9"]
    assert space.spec.initial == space.starts["EMA 0.8"]
    expected = {"step-4": [0, 0, 0, 1], UNIFORM: [0.25] * 4, "EMA 0.5": (np.array([1, 2, 4, 8]) / 15).tolist()}
    for name, wanted in expected.items():
        assert weights(space.baselines[name], SliceId("embed")) == pytest.approx(wanted)
        assert space.decode(space.starts[name]) == space.baselines[name]
    assert space.starts["EMA 0.9"].values == pytest.approx(moving_average(4, 0.9)[1:])


def test_first_candidates_differ_by_what_coefficients_are_on_average() -> None:
    few, many = (CheckpointSpace(series(count), {}, spread=0.5, cap=2.0).spec.genes[0].spread for count in (4, 100))
    assert (few, many) == (pytest.approx(0.5 / 4 / 4), pytest.approx(0.5 / 100 / 4))  # a gene's range is 4


def test_slices_that_are_equal_in_all_checkpoints_come_out_as_they_are() -> None:
    known = replace(series(), constant=(SliceId("embed"),))
    recipe = CheckpointSpace(known, {}).decode(Genome((1.0, 0.5, 0.5)))
    assert weights(recipe, SliceId("embed")) == [0, 0, 0, 1]
    assert weights(recipe, SliceId("attn", 0)) == [-1, 1, 0.5, 0.5]


def test_without_a_pool_the_fitness_combines() -> None:
    space = CoefficientSpace(None, {}, names=["a", "b"])
    assert space.decode(Genome((1.25,))) is None
    assert space.coefficients(Genome((1.25,)))["model"].tolist() == [-0.25, 1.25]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cap": 0.5}, "search_space.cap is 0.5"),
        ({"rates": [0.5, 1.0]}, r"search_space.rates\[1\] is 1.0"),
        ({"spread": 0.0}, "search_space.spread is 0.0"),
        ({"components": "each"}, "search_space.layer_group"),
        ({"layer_group": "lyer"}, "did you mean 'layer'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CheckpointSpace(series(), {}, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two or more"):
        CheckpointSpace(replace(series(), refs=series().refs[:1], sources=("step-1",), base=None), {})
