from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.cma_me import CmaMe
from evomerge.strategies.random_search import RandomSearch


class TestCmaMe(LearningContract):
    smallest: ClassVar = {"cells": 1, "emitters": 1, "popsize": 4}

    @pytest.fixture
    def make(self) -> Make:
        return partial(CmaMe, emitters=1, cells=3, descriptors=["genes:*"])


class TestTessellatedCmaMeOnWholeNumbers(StrategyContract):
    spec = GenomeSpec((*(gene for gene in MIXED if gene.kind != "categorical"), Gene("tail/a/weight")))
    smallest: ClassVar = {"cells": 1, "emitters": 1, "popsize": 4}

    @pytest.fixture
    def make(self) -> Make:
        return partial(CmaMe, archive="cvt", cells=12, popsize=6, separable=True)


BOX = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=1.0) for i in range(6)))


def hill(_: GenomeSpec, genome: Genome) -> float:
    """Smaller is better: nothing but the last four genes matters, and the first two are what kinds differ by."""
    return float(np.sum((np.array(genome.values[2:]) - 0.4) ** 2))


def test_a_plane_of_kinds_is_filled_with_better_candidates_than_random_ones() -> None:
    options = {"descriptors": ["genes:g0", "genes:g1"], "cells": 8}
    strategy = CmaMe(BOX, MAXIMISE, seed=0, emitters=3, **options)
    player = Player(strategy, BOX, hill)
    player.run(1500)
    gains = [elite.gain for elite in strategy.elites()]
    yardstick = Player(RandomSearch(BOX, MAXIMISE, seed=0), BOX, hill)
    scores: dict[tuple[int, ...], float] = {}
    for genome in yardstick.run(1500):
        cell = tuple(int(min((value + 1) * 4, 7)) for value in genome.values[:2])
        scores[cell] = min(scores.get(cell, np.inf), hill(BOX, genome))
    assert len(gains) > 0.8 * 8 * 8
    assert np.median(gains) > -0.6 * np.median(list(scores.values()))


def test_starts_at_the_corner_of_many_genes() -> None:
    """Where drawing anew until a point is within bounds would take 2^60 draws."""
    spec = GenomeSpec(tuple(Gene(f"g{i}", initial=0.0) for i in range(60)))
    player = Player(CmaMe(spec, MAXIMISE, seed=0), spec, lambda _, g: float(sum(g.values)))
    for genome in player.run(300):
        spec.check(genome)


def test_categorical_genes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'embed/method' is categorical; strategy CMA-ME handles boolean, continuous"):
        CmaMe(MIXED, MAXIMISE, seed=0)


def test_elites_are_those_of_whole_generations() -> None:
    strategy = CmaMe(BOX, MAXIMISE, seed=0, emitters=1, popsize=4, cells=2, descriptors=["a/acc"])
    values = [(1.0, 0.2), (2.0, 0.3), (5.0, 0.9), (9.0, 0.9)]
    genomes = [proposal.genome for proposal in strategy.ask()]
    for i, (genome, (gain, measure)) in enumerate(zip(genomes, values, strict=True)):
        assert strategy.elites() == []
        made = scored(i, -gain, metrics={"a/acc": measure})
        if i == 3:
            made = Evaluation(i, "failed", error="x")
        strategy.tell(Candidate(i, None, genome), made)
    found = [(elite.candidate, elite.gain, elite.descriptors, elite.genome) for elite in strategy.elites()]
    assert found == [(1, 2.0, (0.3,), genomes[1]), (2, 5.0, (0.9,), genomes[2])]


def test_failures_are_no_parents() -> None:
    """The first step goes to the mean of the candidates that improved the archive."""
    strategy = CmaMe(BOX, MAXIMISE, seed=0, emitters=1, popsize=6, cells=1, descriptors=["a/acc"])
    genomes = [proposal.genome for proposal in strategy.ask()]
    for i, genome in enumerate(genomes):
        made = scored(i, 0.5, metrics={"a/acc": 0.5}) if i == 4 else Evaluation(i, "failed", error="x")
        strategy.tell(Candidate(i, None, genome), made)
    mean = 2 * strategy._emitters[0]._opt.mean - 1
    assert mean == pytest.approx(genomes[4].values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"emitters": 0}, "strategy.emitters is 0"),
        ({"popsize": 3}, "strategy.popsize is 3"),
        ({"sigma0": 0.0}, "strategy.sigma0 is 0.0"),
        ({"cells": 0}, "strategy.cells is 0"),
        ({"objective": "x"}, "strategy.objective is 'x'"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CmaMe(**{"spec": BOX, "objectives": MAXIMISE, "seed": 0, **given})
