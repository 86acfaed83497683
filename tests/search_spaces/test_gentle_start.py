"""What a search for a path tries first on a deep model: the input model, then paths that differ in a place or two."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool

from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.recipes.path import path_of
from evomerge.search.warm_start import WarmStartSources
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from search_spaces.data_flow import DataFlowSpace

DEPTH = 32
SCORE = (Objective("score"),)


def space(**config: Any) -> DataFlowSpace:
    return DataFlowSpace(pool(DEPTH), METHODS, **{"gentle_start": True, **config})


def changed(made: DataFlowSpace, genome: Genome) -> int:
    """Indicators that are not as in the input model."""

    def taken(values: Genome) -> list[bool]:
        return [float(v) > 0 for g, v in zip(made.spec, values.values, strict=True) if not g.name.endswith("/scale")]

    return sum(a != b for a, b in zip(taken(genome), taken(made.spec.initial), strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("relaxed", [False, True])
def test_first_candidates_change_a_place_or_two(seed: int, relaxed: bool) -> None:
    made = space(relaxed=relaxed)
    assert len(made.spec) > 100
    strategy = CmaEs(made.spec, SCORE, seed=seed) if relaxed else CatCma(made.spec, SCORE, seed=seed, start="auto")
    first = [proposal.genome for proposal in strategy.ask()]
    assert 1 <= statistics.median(changed(made, genome) for genome in first) <= 2
    scales = [
        abs(float(value) - 1.0)
        for genome in first
        for gene, value in zip(made.spec, genome.values, strict=True)
        if gene.name.endswith("/scale")
    ]
    assert 0.005 < statistics.median(scales) < 0.05


@pytest.mark.parametrize("relaxed", [False, True])
def test_before_any_of_them_comes_the_input_model_as_it_is(relaxed: bool) -> None:
    made = space(relaxed=relaxed)
    warm = WarmStartSources([], 0, SCORE)(made, "sha256:any")
    assert list(warm.to_reevaluate) == [made.spec.initial]
    recipe = made.decode(made.spec.initial)
    assert path_of(recipe) is None  # every layer is where it was, of one model, unscaled
    assert {source.model for entry in recipe.slices for source in entry.inputs} == {"math"}


def test_settings_of_before_mean_what_they_meant() -> None:
    """A configuration that does not say starts as it did: runs are resumed to the bit."""
    made = DataFlowSpace(pool(DEPTH), METHODS)
    assert not WarmStartSources([], 0, SCORE)(made, "sha256:any").to_reevaluate
    assert {gene.spread for gene in made.spec} == {None}
    first = [proposal.genome for proposal in CatCma(made.spec, SCORE, seed=0).ask()]
    assert statistics.median(changed(made, genome) for genome in first) > 10
