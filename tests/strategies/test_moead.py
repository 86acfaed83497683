from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective, ParetoArchive
from evomerge.protocols import Strategy
from evomerge.strategies.moead import Moead
from evomerge.strategies.random_search import RandomSearch

TWO = (Objective("maths"), Objective("loss", "minimize"))
LINE = GenomeSpec((Gene("x"),))
REFERENCE = {"maths": 0.0, "loss": 2.0}


class TestMoead(LearningContract):
    spec = MIXED
    smallest: ClassVar = {"preferences": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Moead, preferences=10)


def told(number: int, maths: float, loss: float) -> Evaluation:
    return Evaluation(number, "ok", objectives={"maths": maths, "loss": loss})


def members(strategy: Moead) -> list[int]:
    """The candidates that the preferences hold, in their order."""
    state = strategy.state_dict()
    return [int(state["ids"][place]) for place in state["members"]]


def test_members_are_those_nearest_to_the_ideal_by_each_preference() -> None:
    """By hand. Gains (maths, -loss) of three firsts: 0 (1, -1), 1 (0, 0), 2 (0.6, -0.4); the ideal is (1, 0), the scale
    1 in both. Distances by (1, 0): 0, 1, 0.4; by (1/2, 1/2): 0.5, 0.5, 0.2; by (0, 1): 1, 0, 0.4.
    """
    strategy = Moead(LINE, TWO, seed=0, preferences=3, replace=3)
    assert strategy.preferences.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    scores = [(1.0, 1.0), (0.0, 0.0), (0.6, 0.4)]
    for number, (proposal, score) in enumerate(zip(strategy.ask(3), scores, strict=True)):
        strategy.tell(Candidate(number, None, proposal.genome), told(number, *score))
    assert members(strategy) == [0, 2, 1]


def test_a_child_replaces_no_more_than_it_may() -> None:
    """Five preferences hold one start; a child that dominates it is nearer by all, and takes the one or two that it
    brings nearest: by (w, 1 - w) with the ideal at the child and the scale (1, 1) the start is at max(w, 1 - w).
    """
    for replace, expected in ((1, [3, 0, 0, 0, 0]), (2, [3, 0, 0, 0, 3]), (9, [3, 3, 3, 3, 3])):
        strategy = Moead(LINE, TWO, seed=0, preferences=5, neighbours=5, replace=replace)
        first = strategy.ask(5)
        strategy.tell(Candidate(0, None, first[0].genome), told(0, 0.0, 1.0))
        for number, proposal in enumerate(first[1:], start=10):  # worse than the first, which stays
            strategy.tell(Candidate(number, None, proposal.genome), told(number, -1.0, 2.0))
        child = strategy.ask(1)[0]
        assert child.parents == (0,)
        strategy.tell(Candidate(3, None, child.genome), told(3, 1.0, 0.0))
        assert members(strategy) == expected


def test_only_neighbours_are_replaced() -> None:
    strategy = Moead(LINE, TWO, seed=0, preferences=5, neighbours=2, near=1.0, replace=5)
    for number, proposal in enumerate(strategy.ask(5)):  # the first is the best
        strategy.tell(Candidate(number, None, proposal.genome), told(number, -float(number), 1.0 + number))
    for turn, expected in enumerate(([9, 9, 0, 0, 0], [10, 10, 0, 0, 0], [10, 11, 11, 0, 0])):
        child = strategy.ask(1)[0]
        strategy.tell(Candidate(9 + turn, None, child.genome), told(9 + turn, 1.0 + turn, -float(turn)))
        assert members(strategy) == expected


def test_what_comes_from_elsewhere_joins_where_it_is_the_nearest() -> None:
    strategy = Moead(LINE, TWO, seed=0, preferences=3, replace=1)
    for number, score in enumerate([(0.5, 0.5), (1.0, 1.0), (0.0, 0.0)]):
        genome = LINE.genome([number / 4])
        strategy.inject(Candidate(number, None, genome), told(number, *score))
    assert members(strategy) == [1, 0, 2]


PLANE = GenomeSpec((Gene("x"), Gene("y"), Gene("z"), Gene("m", "categorical", choices=("bad", "good"))))


def front(strategy: Strategy, evaluations: int) -> tuple[float, int]:
    """Hypervolume and size of the front of two objectives that disagree about ``x``; the other genes only hurt."""
    archive, number = ParetoArchive(TWO), 0
    while number < evaluations:
        for proposal in strategy.ask():
            x, y, z = (float(value) for value in proposal.genome.values[:3])
            hurt = (y - 0.5) ** 2 + (z - 0.5) ** 2 + (proposal.genome.values[3] == "bad")
            evaluation = told(number, x**2 - hurt, x + hurt)
            archive.add(number, evaluation.objectives)
            strategy.tell(Candidate(number, None, proposal.genome), evaluation)
            number += 1
    return archive.hypervolume(REFERENCE), len(archive)


@pytest.mark.parametrize("weights", ["lattice", "dirichlet"])
def test_fronts_are_better_than_those_of_random_search(weights: str) -> None:
    found = [front(Moead(PLANE, TWO, seed=seed, weights=weights), 240)[0] for seed in range(2)]
    chance = [front(RandomSearch(PLANE, TWO, seed=seed), 240)[0] for seed in range(2)]
    assert np.mean(found) > np.mean(chance) + 0.05


def test_preferences_of_the_users_are_those_that_count() -> None:
    wanted = [{"maths": 3, "loss": 1}, {"loss": 2.0}]
    assert Moead(PLANE, TWO, seed=0, preferences=wanted).preferences.tolist() == [[0.75, 0.25], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preferences": 1},
            "strategy.preferences is 1; 2 to 10,000: a lattice has one for each objective (maths, loss)",
        ),
        ({"preferences": []}, "strategy.preferences is []"),
        ({"preferences": [{"maths": 1}, {"los": 1}]}, "strategy.preferences[1] has 'los'; did you mean 'loss'?"),
        ({"preferences": [{"maths": -1}]}, "strategy.preferences[0].maths is -1"),
        ({"preferences": [{"maths": 0.0}]}, "strategy.preferences[0] weighs nothing"),
        ({"weights": "latice"}, "did you mean 'lattice'?"),
        ({"neighbours": 1}, "strategy.neighbours is 1"),
        ({"near": 1.5}, "strategy.near is 1.5"),
        ({"replace": 0}, "strategy.replace is 0"),
        ({"mutation": 2}, "strategy.mutation is 2"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Moead(CONTINUOUS, TWO, seed=0, **options)
    assert message in str(error.value)


def test_one_objective_is_a_genetic_algorithm() -> None:
    assert np.allclose(Moead(CONTINUOUS, MAXIMISE, seed=0, preferences=4).preferences, 1.0)
