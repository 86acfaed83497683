from __future__ import annotations

from collections import Counter
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.genome_evolution import GenomeEvolution
from evomerge.strategies.variation.roulette import chances, survivors

LINE = GenomeSpec((Gene("a", high=10.0), Gene("b", high=10.0)))
STILL = {"individuals": 0.0, "succession": False}


class TestGenomePlus(LearningContract):
    smallest: ClassVar = {"popsize": 2, "elites": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(GenomeEvolution, individuals=0.8, genes=0.2, sigma=0.1)


class TestGenomeOnMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 2}

    @pytest.fixture
    def make(self) -> Make:
        return partial(GenomeEvolution, succession=False, survivors="score", parents="random", largest=30)


class TestGenomePlusOnMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 2}

    @pytest.fixture
    def make(self) -> Make:
        return GenomeEvolution


def test_chances_are_shares_of_positive_scores() -> None:
    np.testing.assert_allclose(chances(np.array([0.1, 0.3, 0.6])), [0.1, 0.3, 0.6])


def test_chances_of_losses_are_distances_from_the_worst() -> None:
    # Distances 0, 1, 3 and the mean of two gaps, 1.5, each.
    np.testing.assert_allclose(chances(np.array([-5.0, -4.0, -2.0])), np.array([1.5, 2.5, 4.5]) / 8.5)
    np.testing.assert_allclose(chances(np.array([-2.0, -2.0])), [0.5, 0.5])
    np.testing.assert_allclose(chances(np.array([0.0])), [1.0])
    for odd in ([-1e308, 1e308, 0.0], [1e308, 1e-300], [0.0, 1e-320]):
        found = chances(np.array(odd))
        assert np.isfinite(found).all()
        assert found.min() > 0
        assert found.sum() == pytest.approx(1)


def test_elites_stay_and_places_are_won() -> None:
    rng, gains = np.random.default_rng(0), np.array([0.1, 0.9, 0.5, 0.8, 0.3])
    assert survivors(gains, 5, 1, 3, False, rng) == [0, 1, 2, 3, 4]
    assert survivors(gains, 3, 0, 5, False, rng) == [1, 2, 3]  # all compete
    seen = Counter(index for _ in range(400) for index in survivors(gains, 2, 1, 2, False, rng))
    # Of the four others two compete: the best of them is among the two half of the time, the worst never wins.
    assert seen[1] == 400
    assert seen[0] == 0
    assert seen[3] == pytest.approx(200, abs=40)
    seen = Counter(index for _ in range(400) for index in survivors(gains, 2, 1, 2, True, rng))
    assert seen[3] == pytest.approx(400 * 0.8 / 1.7, abs=40)


def begun(told: list[tuple[list[float], float]], **options: object) -> GenomeEvolution:
    strategy = GenomeEvolution(LINE, MAXIMISE, seed=0, **{"popsize": len(told), **options})
    for number, (values, gain) in enumerate(told):
        strategy.inject(Candidate(number, None, LINE.genome(values)), scored(number, -gain))
    strategy._proposed = len(strategy._starts)  # the start is one of these
    return strategy


def test_a_child_is_the_mean_weighted_by_scores() -> None:
    strategy = begun([([2.0, 4.0], 0.75), ([6.0, 0.0], 0.25)], crossover=1.0, **STILL)
    (child,) = strategy.ask(None)
    assert set(child.parents) == {0, 1}
    np.testing.assert_allclose(child.genome.values, [3.0, 3.0])
    assert strategy.ask(1) == []  # it is being told


def test_parents_are_drawn_by_score() -> None:
    told = [([float(i), float(i * i)], gain) for i, gain in enumerate([0.7, 0.1, 0.1, 0.1])]
    seen: Counter[int] = Counter()
    for seed in range(150):
        strategy = begun(told, crossover=1.0, **STILL)
        strategy._rng = np.random.default_rng(seed)
        for proposal in strategy.ask(None):
            seen.update(proposal.parents)
    assert sum(seen.values()) == 4 * 150
    # Drawn first with 0.7, or second after one of the others: 0.7 + 0.3 * 7 / 9.
    assert seen[0] == pytest.approx(300 * (0.7 + 0.3 * 7 / 9), abs=20)


def test_copies_of_members_and_children_mutate() -> None:
    told = [([float(i), 5.0], 0.5) for i in range(4)]
    strategy = begun(told, crossover=1.0, individuals=1.0, genes=0.0, sigma=0.05, succession=False)
    planned = strategy.ask(None)
    assert len(planned) == 2 + 4 + 2  # children, copies of members and of children
    children, copies = planned[:2], planned[2:]
    origins = [*(LINE.genome(values) for values, _ in told), *(child.genome for child in children)]
    for proposal, origin in zip(copies, origins, strict=True):
        changed = [a != b for a, b in zip(proposal.genome.values, origin.values, strict=True)]
        assert sum(changed) == 1
    assert [c.parents for c in copies] == [(0,), (1,), (2,), (3,), children[0].parents, children[1].parents]


def test_a_generation_without_any_makes_one_child() -> None:
    strategy = begun([([2.0, 4.0], 0.5), ([6.0, 0.0], 0.5)], crossover=0.0, **STILL)
    assert [p.genome.values for p in strategy.ask(None)] == [(4.0, 2.0)]


def test_succession_by_hand() -> None:
    """All forces alike and not drawn: v <- (v + (p - x) + (g - x) - (w - x)) / 4, x <- x + v / 2."""
    forces = {"inertia": 1, "cognitive": 1, "social": 1, "repel": 1, "draws": "none", "step": 0.5}
    strategy = begun([([2.0, 4.0], 0.9), ([6.0, 4.0], 0.5)], crossover=1.0, individuals=0.0, **forces)
    first, second = strategy.ask(None)
    # v = (4, 0), p = g = x, w = (6, 4): nothing, so that a gene mutates.
    assert sum(a != b for a, b in zip(first.genome.values, (2.0, 4.0), strict=True)) == 1
    # v = (-4, 0), p = w = x, g = (2, 4): (-2, 0), half of it.
    np.testing.assert_allclose(second.genome.values, [5.0, 4.0])
    assert (first.parents, second.parents) == ((0,), (1, 0))
    strategy.tell(Candidate(2, None, first.genome), Evaluation(2, "failed", error="x"))
    strategy.tell(Candidate(3, None, second.genome), scored(3, -0.3))  # worse: it is there all the same
    (child,) = strategy.ask(None)
    assert set(child.parents) == {0, 3}
    np.testing.assert_allclose(child.genome.values, (0.9 * np.array([2.0, 4.0]) + 0.3 * np.array([5.0, 4.0])) / 1.2)
    strategy.tell(Candidate(4, None, child.genome), scored(4, -0.1))
    # Of three the best stays and one of the others; its own best is where it was before.
    assert len(strategy.ask(None)) == 2
    assert {individual.now.id for individual in strategy._members} in ({0, 3}, {0, 4})
    assert strategy._ends[0].id == 0
    assert strategy._ends[1].id == 4


def test_the_best_of_all_stays() -> None:
    strategy = GenomeEvolution(LINE, MAXIMISE, seed=0, popsize=6, succession=False)
    player = Player(strategy, LINE)
    best = np.inf
    for _ in range(12):
        player.ask()
        player.tell()
        strategy.ask(0)
        best = min(best, player.best)
        everyone = [*strategy._members, *strategy._offspring]
        assert max(individual.now.gain for individual in everyone) == -best


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"popsize": 1}, "strategy.popsize is 1"),
        ({"largest": 5}, "strategy.largest is 5"),
        ({"crossover": 1.1}, "strategy.crossover is 1.1"),
        ({"individuals": -1}, "strategy.individuals is -1"),
        ({"elites": 10}, "strategy.elites is 10"),
        ({"tournament": 0}, "strategy.tournament is 0"),
        ({"survivors": "tournement"}, "strategy.survivors is 'tournement'; did you mean 'tournament'"),
        ({"parents": "best"}, "strategy.parents is 'best'"),
        ({"draws": "all"}, "strategy.draws is 'all'"),
        ({"repel": -1}, "strategy.repel is -1"),
        ({"objectives": (Objective("a"), Objective("b"))}, "GENOME was given 2 objectives"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenomeEvolution(**{"spec": LINE, "objectives": MAXIMISE, "seed": 0, **given})
