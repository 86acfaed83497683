from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.genetic import GeneticAlgorithm


class TestGeneticAlgorithm(LearningContract):
    smallest: ClassVar = {"popsize": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(GeneticAlgorithm, popsize=10)


class TestAgingOnMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 1, "elites": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(GeneticAlgorithm, popsize=8, replace="oldest", batch=5)


def gains(strategy: GeneticAlgorithm) -> list[float]:
    return strategy.state_dict()["members"]["gains"].tolist()


def test_the_first_population_starts_at_the_start() -> None:
    proposals = GeneticAlgorithm(MIXED, MAXIMISE, seed=0, popsize=12).ask()
    assert len(proposals) == 12
    assert proposals[0].genome == MIXED.initial
    assert all(proposal.parents == () for proposal in proposals)


def test_failures_of_the_first_population_are_replaced() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=4), CONTINUOUS)
    player.ask(4)
    player.tell(make=lambda c: scored(c.id, 0.1) if c.id == 2 else Evaluation(c.id, "failed", error="x"))
    assert gains(player.strategy) == [-0.1]
    assert [proposal.parents for proposal in player.ask(4)] == [(), (), (), (2,)]


def test_the_worst_leaves() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=3), CONTINUOUS)
    for value in (3.0, 1.0, 2.0, 1.5, 4.0):
        player.ask(1)
        player.tell(make=lambda c, value=value: scored(c.id, value))
    assert gains(player.strategy) == [-1.0, -2.0, -1.5]


def test_the_oldest_leaves_but_for_the_elite() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=3, replace="oldest"), CONTINUOUS)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        player.ask(1)
        player.tell(make=lambda c, value=value: scored(c.id, value))
    assert gains(player.strategy) == [-1.0, -4.0, -5.0]


def test_parents_are_named() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=6, crossover=1.0), CONTINUOUS)
    player.ask(6)
    player.tell()
    for proposal in player.ask(20):
        assert set(proposal.parents) <= set(range(6))
    assert any(len(proposal.parents) == 2 for proposal in player.ask(20))


def test_without_crossover_a_child_differs_from_its_parent_in_few_genes() -> None:
    spec = GenomeSpec(tuple(Gene(f"g{i}") for i in range(40)))
    player = Player(GeneticAlgorithm(spec, MAXIMISE, seed=0, popsize=5, crossover=0.0), spec)
    player.ask()
    player.tell()
    changed = []
    for proposal in player.ask(300):
        (parent,) = proposal.parents
        changed.append(sum(a != b for a, b in zip(proposal.genome.values, player.asked[parent].values, strict=True)))
    assert min(changed) == 1  # never none: that would be the same model again
    # One of forty genes on average, and one where it would have been none (probability 0.363): 1.36.
    assert np.mean(changed) == pytest.approx(1.36, abs=0.15)


def test_a_population_of_one_is_a_hill_climber() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=1), CONTINUOUS)
    player.run(200, 1)
    assert player.best < 0.02
    assert len(gains(player.strategy)) == 1


def test_on_a_plateau_the_population_is_renewed() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=5), CONTINUOUS, score=lambda s, g: 1.0)
    player.run(50, 5)
    assert min(player.strategy.state_dict()["members"]["ids"]) >= 45


def test_choices_and_whole_numbers_are_found() -> None:
    spec = GenomeSpec(
        (
            *(Gene(f"m{i}", "categorical", choices=tuple("abcd")) for i in range(4)),
            *(Gene(f"k{i}", "integer", low=0, high=20) for i in range(4)),
            Gene("b", "boolean"),
        )
    )

    def regret(_: GenomeSpec, genome: Genome) -> float:
        letters, numbers, flag = genome.values[:4], genome.values[4:8], genome.values[8]
        return float(sum(v != "c" for v in letters) + sum(abs(int(v) - 13) for v in numbers) / 20 + (not flag))

    player = Player(GeneticAlgorithm(spec, MAXIMISE, seed=0), spec, regret)
    player.run(800)
    assert player.best <= 0.05


def test_candidates_from_elsewhere_join_when_injected() -> None:
    player = Player(GeneticAlgorithm(MIXED, MAXIMISE, seed=0, popsize=4), MIXED)
    player.run(8, 4)
    migrant = Candidate(100, None, MIXED.sample(np.random.default_rng(5)))
    player.strategy.inject(Candidate(101, None, None, name="base"), scored(101, -1.0))
    player.strategy.inject(migrant, Evaluation(100, "failed", error="x"))
    assert max(gains(player.strategy)) < 1.0
    player.strategy.inject(migrant, scored(100, -1.0))
    assert max(gains(player.strategy)) == 1.0
    assert any(100 in proposal.parents for proposal in player.ask(20))


def test_the_spread_of_the_first_population() -> None:
    spec = GenomeSpec(tuple(Gene(f"g{i}", low=-5, high=5) for i in range(400)))
    genomes = GeneticAlgorithm(spec, MAXIMISE, seed=0, popsize=3, spread=0.01).ask()
    assert set(genomes[0].genome.values) == {0.0}
    assert np.std(genomes[1].genome.values) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"popsize": 0}, "strategy.popsize is 0"),
        ({"tournament": 0}, "strategy.tournament is 0"),
        ({"crossover": 1.5}, "strategy.crossover is 1.5"),
        ({"mutation": float("nan")}, "strategy.mutation is nan"),
        ({"crossover_eta": -1}, "strategy.crossover_eta is -1"),
        ({"mutation_eta": float("inf")}, "strategy.mutation_eta is inf"),
        ({"replace": "oldest", "elites": 20}, "strategy.elites is 20"),
        ({"replace": "best"}, "strategy.replace is 'best'"),
        ({"spread": -0.1}, "strategy.spread is -0.1"),
        ({"batch": 0}, "strategy.batch is 0"),
        ({"seed": -1}, "search.seed is -1"),
        ({"objectives": (Objective("a"), Objective("b"))}, r"GA was given 2 objectives \(a, b\)"),
        ({"spec": GenomeSpec((Gene("m", "categorical", choices=("ties",)),))}, "no free gene"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneticAlgorithm(**{"spec": CONTINUOUS, "objectives": MAXIMISE, "seed": 0, **given})


def test_a_state_of_other_settings_is_refused() -> None:
    state = GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="popsize"):
        GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=5).load_state_dict(state)
    with pytest.raises(ConfigError, match="genes"):
        GeneticAlgorithm(MIXED, MAXIMISE, seed=0, mutation=0.25).load_state_dict(state)


def test_an_evaluation_without_the_objective_is_an_error() -> None:
    strategy = GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0)
    genome = strategy.ask(1)[0].genome
    with pytest.raises(FitnessError, match="candidate 5 has no objective 'score'"):
        strategy.tell(Candidate(5, None, genome), Evaluation(5, "ok", objectives={"accuracy": 0.5}))


def test_the_worst_of_a_full_population_is_to_be_beaten() -> None:
    player = Player(GeneticAlgorithm(CONTINUOUS, MAXIMISE, seed=0, popsize=3), CONTINUOUS)
    found = []
    for value in (3.0, 1.0, 2.0, 1.5, 2.0):
        player.ask(1)
        player.tell(make=lambda c, value=value: scored(c.id, value))
        found.append(player.strategy.to_beat(Candidate(99, None)))
    assert found == [None, None, 0, 2, 4]  # of the equals 2 and 4 the older one has left
