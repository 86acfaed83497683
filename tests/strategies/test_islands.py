from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.strategies.bases.capabilities import Competing
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.differential_evolution import DifferentialEvolution
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.islands import Islands
from evomerge.strategies.random_search import RandomSearch

GA = partial(GeneticAlgorithm, popsize=5)
DE = partial(DifferentialEvolution, popsize=5)


class TestIslands(LearningContract):
    smallest: ClassVar = {"islands": 1, "every": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Islands, strategies=[GA], islands=2, every=10)


class TestIslandsOfSeveralStrategies(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"islands": 1, "every": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Islands, strategies=[GA, CmaEs, DE], islands=3, every=7, migrants=2, topology="random")


def ids(strategy: Islands, island: int) -> list[int]:
    return strategy._islands[island].state_dict()["members"]["ids"].tolist()


def full(**options: object) -> Player:
    """Three islands; candidate i is island i % 3's, and its score is i (smaller is better)."""
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=3, **options), CONTINUOUS)
    player.ask(6)
    return player


def test_the_best_of_late_go_to_the_next_island() -> None:
    player = full(every=6, migrants=1)
    player.tell(5, make=lambda c: scored(c.id, float(c.id)))
    assert [ids(player.strategy, i) for i in range(3)] == [[0, 3], [1, 4], [2]]
    player.tell(make=lambda c: scored(c.id, float(c.id)))
    assert [ids(player.strategy, i) for i in range(3)] == [[0, 3, 2], [1, 4, 0], [2, 5, 1]]
    player.ask(6)
    player.tell(make=lambda c: scored(c.id, float(c.id)))
    sent = [set(ids(player.strategy, i)) & {6, 7, 8} for i in range(3)]
    assert sent == [{6, 8}, {7, 6}, {8, 7}]  # those told before are not sent again


def test_failures_do_not_travel() -> None:
    player = full(every=6)
    player.tell(make=lambda c: Evaluation(c.id, "failed", error="x") if c.id != 4 else scored(4, 1.0))
    assert [ids(player.strategy, i) for i in range(3)] == [[], [4], [4]]


def test_no_migrants_no_exchange() -> None:
    player = full(every=1, migrants=0)
    player.tell()
    assert [ids(player.strategy, i) for i in range(3)] == [[0, 3], [1, 4], [2, 5]]


def test_one_island_is_its_strategy() -> None:
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=1, every=1), CONTINUOUS)
    player.run(40, 4)
    assert ids(player.strategy, 0) == sorted(set(ids(player.strategy, 0)))


def test_islands_that_wait_are_passed_over() -> None:
    strategies = [partial(CmaEs, popsize=4), GA]
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=strategies, islands=2), CONTINUOUS)
    assert len(player.ask(20)) == 20  # four of CMA-ES, sixteen of the GA
    waiting = Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[partial(CmaEs, popsize=4)], islands=2)
    assert len(waiting.ask(20)) == 8
    assert len(waiting.ask(1)) == 0


def test_asynchronous_when_all_islands_are() -> None:
    assert Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA, DE]).asynchronous
    assert not Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA, CmaEs]).asynchronous


def test_candidates_from_elsewhere_reach_all_islands_that_take_them() -> None:
    strategy = Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA, RandomSearch], islands=3)
    strategy.inject(Candidate(9, None, CONTINUOUS.initial), scored(9, 0.5))
    assert ids(strategy, 0) == ids(strategy, 2) == [9]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"islands": 0}, "strategy.islands is 0"),
        ({"every": 0}, "strategy.every is 0"),
        ({"migrants": -1}, "strategy.migrants is -1"),
        ({"topology": "star"}, "strategy.topology is 'star'"),
        ({"strategies": []}, "strategy.strategies is empty"),
        ({"seed": -1}, "search.seed is -1"),
        ({"objectives": (Objective("a"), Objective("b"))}, "GA was given 2 objectives"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Islands(**{"spec": CONTINUOUS, "objectives": MAXIMISE, "seed": 0, "strategies": [GA], **given})


def test_a_state_of_other_islands_is_refused() -> None:
    state = Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=2).state_dict()
    with pytest.raises(ConfigError, match="2 islands, this one has 3"):
        Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=3).load_state_dict(state)


def test_whom_its_own_island_says_is_to_be_beaten() -> None:
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=2), CONTINUOUS)
    player.ask(10)
    player.tell(make=lambda c: scored(c.id, float(c.id)))  # smaller is better
    asked = [Candidate(50, None, proposal.genome) for proposal in player.ask(4)]
    assert isinstance(player.strategy, Competing)
    assert [player.strategy.to_beat(candidate) for candidate in asked] == [8, 9, 8, 9]
    assert player.strategy.to_beat(Candidate(50, None)) is None
    mixed = Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA, CmaEs], islands=2)
    assert not isinstance(mixed, Competing)
