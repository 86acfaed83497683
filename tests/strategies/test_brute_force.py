from __future__ import annotations

import itertools
from functools import partial
from typing import ClassVar

import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MAXIMISE, Make

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.strategies.brute_force import BruteForce

DISCRETE = GenomeSpec(
    (
        Gene("method", "categorical", choices=("linear", "ties", "slerp")),
        Gene("weight", low=-1.0, high=1.0, resolution=0.1),
        Gene("rank", "integer", low=1, high=6),
        Gene("fixed", low=0.4, high=0.4),
        Gene("rescale", "boolean"),
    )
)


class TestBruteForce(StrategyContract):
    spec = DISCRETE
    smallest: ClassVar = {"batch": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(BruteForce, batch=6)

    def test_one_gene(self, make: Make) -> None:
        strategy = make(GenomeSpec((Gene("t", resolution=0.02),)), MAXIMISE, seed=0)
        genomes = [proposal.genome.values[0] for proposal in strategy.ask(100)]
        assert sorted(genomes) == [pytest.approx(k / 50) for k in range(51)]
        assert genomes != sorted(genomes)


@pytest.mark.parametrize("seed", range(3))
def test_every_genome_once_and_then_nothing(seed: int) -> None:
    spec = GenomeSpec((DISCRETE.genes[0], Gene("w", resolution=0.25), Gene("k", "integer", low=3, high=4)))
    strategy = BruteForce(spec, MAXIMISE, seed=seed)
    genomes = [p.genome.values for p in [*strategy.ask(7), *strategy.ask(100)]]
    expected = itertools.product(("linear", "ties", "slerp"), (0.0, 0.25, 0.5, 0.75, 1.0), (3, 4))
    assert sorted(genomes) == sorted(expected)
    assert strategy.ask() == []
    assert strategy.ask(3) == []


def test_spaces_beyond_machine_words() -> None:
    spec = GenomeSpec(tuple(Gene(f"{i}", "boolean") for i in range(200)))
    genomes = [p.genome for p in BruteForce(spec, MAXIMISE, seed=0).ask(2000)]
    assert len(set(genomes)) == 2000
    assert all(500 < sum(bool(g.values[i]) for g in genomes) < 1500 for i in (0, 100, 199))


def test_numbers_without_end_are_refused() -> None:
    with pytest.raises(ConfigError, match="'g' is continuous and has no resolution"):
        BruteForce(GenomeSpec((Gene("g"),)), MAXIMISE, seed=0)


@pytest.mark.parametrize(("given", "key"), [({"batch": 0, "seed": 0}, "strategy.batch"), ({"seed": -1}, "search.seed")])
def test_wrong_arguments_are_named(given: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        BruteForce(DISCRETE, MAXIMISE, **given)
