from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.differential_evolution import DifferentialEvolution


class TestDifferentialEvolution(LearningContract):
    smallest: ClassVar = {"popsize": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(DifferentialEvolution, popsize=12)


class TestAdaptiveBestOnMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(DifferentialEvolution, popsize=8, variant="best/1/bin", adaptive=True, batch=5)


BOX = GenomeSpec(tuple(Gene(f"g{i}") for i in range(8)))


def full(**options: object) -> Player:
    """Ten members with scores 0 to 9 of genomes drawn at random."""
    strategy = DifferentialEvolution(BOX, MAXIMISE, seed=1, popsize=10, **options)
    player = Player(strategy, BOX)
    player.ask(10)
    player.tell(make=lambda c: scored(c.id, float(c.id)))
    return player


def test_a_trial_is_a_plus_the_scaled_difference() -> None:
    player = full(factor=0.7, crossover=1.0)
    for turn, proposal in enumerate(player.ask(10)):
        target, a, b, c = (np.array(player.asked[parent].values) for parent in proposal.parents)
        assert proposal.parents[0] == turn  # members take turns
        mutant = a + 0.7 * (b - c)
        mutant = np.where(mutant < 0, target / 2, np.where(mutant > 1, (1 + target) / 2, mutant))
        assert proposal.genome.values == pytest.approx(mutant, abs=1e-12)


def test_the_best_is_where_a_trial_starts_from() -> None:
    player = full(variant="best/1/bin", factor=0.0, crossover=1.0)
    genomes = [proposal.genome for proposal in player.ask(10)]
    assert genomes[1:] == 9 * [player.asked[0]]  # the best's own trial differs from it


def test_without_crossover_one_gene_is_the_mutants() -> None:
    player = full(crossover=0.0)
    for turn, proposal in enumerate(player.ask(10)):
        pairs = zip(proposal.genome.values, player.asked[turn].values, strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_a_trial_takes_its_own_members_place_if_it_is_as_good() -> None:
    player = full()
    player.ask(3)
    values = {10: 0.5, 11: 1.0, 12: 1.5}
    player.tell(make=lambda c: scored(c.id, values[c.id]))
    state = player.strategy.state_dict()["members"]
    assert state["ids"].tolist() == [0, 11, 12, 3, 4, 5, 6, 7, 8, 9]
    assert state["gains"].tolist() == [-0.0, -1.0, -1.5, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0]


def test_choices_differ_where_the_two_members_do() -> None:
    spec = GenomeSpec((*(Gene(f"m{i}", "categorical", choices=tuple("abcde")) for i in range(30)), Gene("x")))
    player = Player(DifferentialEvolution(spec, MAXIMISE, seed=0, popsize=5, factor=0.5, crossover=1.0), spec)
    player.ask(5)
    player.tell()
    changed = []
    for proposal in player.ask(50):
        _, a, b, c = (player.asked[parent].values[:30] for parent in proposal.parents)
        for mutant, own, left, right in zip(proposal.genome.values[:30], a, b, c, strict=True):
            if left == right:
                assert mutant == own
            else:
                changed.append(mutant != own)
    assert np.mean(changed) == pytest.approx(0.5 * 4 / 5, abs=0.04)  # one in five draws is what it was


def test_settings_of_success_are_inherited() -> None:
    """jDE on a function that needs small steps: factors of the survivors are no longer the first ones."""
    player = Player(DifferentialEvolution(BOX, MAXIMISE, seed=0, popsize=10, adaptive=True), BOX)
    player.run(400, 5)
    own = player.strategy.state_dict()["own"]
    assert len(np.unique(own[:, 0])) > 3
    assert own[:, 0].min() >= 0.1
    assert own[:, 0].max() <= 1.0
    assert player.best < 0.01


def test_fewer_than_four_members_are_random_search() -> None:
    player = Player(DifferentialEvolution(MIXED, MAXIMISE, seed=0, popsize=1), MIXED)
    genomes = player.run(60, 3)
    assert len(set(genomes)) > 55
    assert player.strategy.state_dict()["members"]["gains"].tolist() == [-player.best]


def test_candidates_from_elsewhere_take_the_worst_place() -> None:
    player = full()
    migrant = Candidate(100, None, BOX.sample(np.random.default_rng(5)))
    player.strategy.inject(Candidate(101, None, None, name="base"), scored(101, -1.0))
    player.strategy.inject(migrant, Evaluation(100, "failed", error="x"))
    player.strategy.inject(migrant, scored(100, 9.5))
    assert 100 not in player.strategy.state_dict()["members"]["ids"]
    player.strategy.inject(migrant, scored(100, 8.5))
    assert player.strategy.state_dict()["members"]["ids"].tolist() == [*range(9), 100]


def test_equal_members_still_lead_somewhere() -> None:
    spec = GenomeSpec((Gene("x", resolution=0.5), Gene("b", "boolean")))
    player = Player(DifferentialEvolution(spec, MAXIMISE, seed=0, popsize=6), spec, score=lambda s, g: 0.0)
    genomes: list[Genome] = player.run(200, 6)
    assert len(set(genomes[150:])) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"popsize": 0}, "strategy.popsize is 0"),
        ({"factor": 2.5}, "strategy.factor is 2.5"),
        ({"crossover": float("nan")}, "strategy.crossover is nan"),
        ({"variant": "rand/2/bin"}, "strategy.variant is 'rand/2/bin'"),
        ({"batch": 0}, "strategy.batch is 0"),
        ({"seed": -1}, "search.seed is -1"),
        ({"objectives": ()}, "DE was given 0 objectives"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DifferentialEvolution(**{"spec": CONTINUOUS, "objectives": MAXIMISE, "seed": 0, **given})


def test_a_state_of_other_settings_is_refused() -> None:
    state = DifferentialEvolution(CONTINUOUS, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="objectives"):
        DifferentialEvolution(CONTINUOUS, (Objective("x"),), seed=0).load_state_dict(state)


def test_a_trial_has_its_own_member_to_beat() -> None:
    player = full()
    proposals = player.ask(12)
    beaten = [player.strategy.to_beat(Candidate(50, None, p.genome, p.parents)) for p in proposals]
    assert beaten == [*range(10), 0, 1]  # members take turns
    assert player.strategy.to_beat(Candidate(50, None)) is None
