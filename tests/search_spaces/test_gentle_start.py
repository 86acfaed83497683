"""What a search for a path tries first on a deep model: the input model, then paths that differ in a place or two."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
import torch
from contracts.space_samples import METHODS, pool
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.errors import ConfigError
from evomerge.export.in_memory import merged_model
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.merge.methods import specs
from evomerge.models.opening import open_pool
from evomerge.objectives import Objective
from evomerge.recipes.path import path_of
from evomerge.search.warm_start import WarmStartSources
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.differential_evolution import DifferentialEvolution
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.m2n2 import M2N2
from evomerge.strategies.map_elites import MapElites
from search_spaces.data_flow import DataFlowSpace
from search_spaces.gentle import gentle_takes
from search_spaces.hybrid import JointSpace
from search_spaces.parameter import ParameterSpace
from search_spaces.permutation import PermutationSpace

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


PATHS: dict[str, Any] = {
    "data_flow": lambda info, **config: DataFlowSpace(info, specs(), **config),
    "relaxed": lambda info, **config: DataFlowSpace(info, specs(), relaxed=True, order="model", repeats=2, **config),
    "blocks": lambda info, **config: DataFlowSpace(info, specs(), block=2, fixed=0, **config),
    "permutation": lambda info, **config: PermutationSpace(info, specs(), **config),
    "repeated permutation": lambda info, **config: PermutationSpace(info, specs(), repeats=2, group=2, **config),
}


@pytest.mark.parametrize("kind", PATHS)
def test_candidate_zero_computes_what_the_input_model_does(kind: str, tiny_model: TinyModel) -> None:
    """As the search makes it: the start of the space, decoded, merged and run."""
    models = {name: str(tiny_model(name, seed=seed, num_hidden_layers=4)) for seed, name in enumerate("ab")}
    opened = open_pool(models)
    made = PATHS[kind](opened.info, gentle_start=True)
    (first,) = WarmStartSources([], 0, SCORE)(made, "sha256:any").to_reevaluate
    tokens = torch.arange(1, 17).view(2, 8)
    with torch.no_grad():
        merged = merged_model(made.decode(first), opened)(tokens).logits
        intact = AutoModelForCausalLM.from_pretrained(models["a"])(tokens).logits
    assert torch.equal(merged, intact)


def test_a_joint_search_starts_at_the_merge_of_every_layer() -> None:
    made = JointSpace(pool(DEPTH), METHODS, gentle_start=True)
    (first,) = WarmStartSources([], 0, SCORE)(made, "sha256:any").to_reevaluate
    plain = ParameterSpace(pool(DEPTH), METHODS, components="all")
    assert made.decode(first).slices == plain.decode(plain.spec.initial).slices
    assert not JointSpace(pool(DEPTH), METHODS).starts_as_it_is


STRATEGIES: dict[str, Any] = {
    "catcma": lambda spec, seed: CatCma(spec, SCORE, seed=seed, start="auto").ask(),
    "de": lambda spec, seed: DifferentialEvolution(spec, SCORE, seed=seed, spread="auto").ask()[1:],
    "ga": lambda spec, seed: GeneticAlgorithm(spec, SCORE, seed=seed, spread="auto").ask()[1:],
    "map_elites": lambda spec, seed: MapElites(spec, SCORE, seed=seed, spread="auto").ask()[1:],
    "m2n2": lambda spec, seed: M2N2(spec, SCORE, seed=seed, spread="auto", batch=20).ask()[1:],
}
SPACES: dict[str, Any] = {
    "data_flow": lambda **config: DataFlowSpace(pool(DEPTH), METHODS, **config),
    "joint": lambda **config: JointSpace(pool(DEPTH), METHODS, **config),
    "permutation": lambda **config: PermutationSpace(pool(DEPTH), METHODS, **config),
    "repeated permutation": lambda **config: PermutationSpace(pool(DEPTH), METHODS, repeats=2, **config),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", SPACES)
def test_first_candidates_of_strategies_with_a_start_are_near_it(kind: str, strategy: str) -> None:
    spec = SPACES[kind](gentle_start=True).spec
    takes = [place for place, gene in enumerate(spec) if gene.spread is not None and not gene.name.endswith("/scale")]
    scales = [place for place, gene in enumerate(spec) if gene.name.endswith("/scale")]
    changes, steps = [], []
    for seed in range(4):
        for proposal in STRATEGIES[strategy](spec, seed):
            values = proposal.genome.values
            changes.append(sum(values[place] != spec.initial.values[place] for place in takes))
            steps += [abs(float(values[place]) - 1.0) for place in scales]
    assert 0.75 <= statistics.mean(changes) <= 2.5
    assert 0.005 < statistics.median(steps) < 0.05


def test_integers_that_start_within_or_at_the_end_of_their_range_change_alike() -> None:
    genes = [Gene(f"g{place}", "integer", 0, 4, initial=place % 3) for place in range(60)]
    strategy = DifferentialEvolution(GenomeSpec(tuple(gentle_takes(genes))), SCORE, seed=0, popsize=400, spread="auto")
    rows = np.array([proposal.genome.values for proposal in strategy.ask()[1:]])
    changed = (rows != np.arange(60) % 3).mean(axis=0)
    assert abs(changed.mean() - 1.5 / 60) < 0.005
    assert changed.max() < 3 * 1.5 / 60


@pytest.mark.parametrize("strategy", [DifferentialEvolution, GeneticAlgorithm, M2N2])
def test_spaces_that_do_not_say_are_begun_as_with_null(strategy: Any) -> None:
    """Uniformly, with the same draws: what `auto` means is for genes that say how near the start is."""
    spec = ParameterSpace(pool(), METHODS, method=["ties", "task_arithmetic"]).spec
    genomes = [[p.genome for p in strategy(spec, SCORE, seed=3, spread=s, batch=12).ask()] for s in ("auto", None)]
    assert genomes[0] == genomes[1]


@pytest.mark.parametrize("strategy", [DifferentialEvolution, M2N2])
def test_another_word_is_none(strategy: Any) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.spread is '?atuo'?; 0 .*auto"):
        strategy(space().spec, SCORE, seed=0, spread="atuo")


def test_settings_of_before_mean_what_they_meant() -> None:
    """A configuration that does not say starts as it did: runs are resumed to the bit."""
    made = DataFlowSpace(pool(DEPTH), METHODS)
    assert not WarmStartSources([], 0, SCORE)(made, "sha256:any").to_reevaluate
    assert {gene.spread for gene in made.spec} == {None}
    first = [proposal.genome for proposal in CatCma(made.spec, SCORE, seed=0).ask()]
    assert statistics.median(changed(made, genome) for genome in first) > 10
