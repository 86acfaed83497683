from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player, pack, unpack
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.capabilities import Competing
from evomerge.strategies.particle_swarm import ParticleSwarm
from evomerge.strategies.variation.swarm import Forces, moved, velocity

LINE = GenomeSpec((Gene("a", high=10.0, initial=2.0), Gene("b", high=10.0, initial=4.0)))
PLAIN = {"draws": "none", "popsize": 2, "step": 1.0, "decay": 0.5, "least_step": 0.1}


class TestParticleSwarm(StrategyContract):
    smallest: ClassVar = {"popsize": 2, "restart": 1}

    @pytest.fixture
    def make(self) -> Make:
        return ParticleSwarm


class TestSwarmDrawnByGene(LearningContract):
    smallest: ClassVar = {"popsize": 2}

    @pytest.fixture
    def make(self) -> Make:
        forces = {"inertia": 0.7, "cognitive": 1.4, "social": 1.4, "repel": 0.0}
        return partial(ParticleSwarm, popsize=10, **forces, normalised=False, draws="gene", decay=1.0, restart=None)


def test_a_velocity_by_hand() -> None:
    v, x, own, best, worst = np.array([[1.0, 0.0], [2.0, 2.0], [4.0, 2.0], [2.0, 6.0], [0.0, 2.0]])
    # 0.5 v + 0.25 (2, 0) + 0.125 (0, 4) - 0.125 (-2, 0)
    factors = np.array([[0.5], [0.25], [0.125], [0.125]])
    np.testing.assert_allclose(velocity(v, x, own, best, worst, factors), [1.25, 0.5])
    np.testing.assert_array_equal(moved(np.array([0.5, 0.5]), np.array([0.75, -0.25])), [1.0, 0.25])


def test_factors_are_shares_of_their_sum() -> None:
    rng = np.random.default_rng(0)
    plain = {"draws": "none"}
    np.testing.assert_allclose(Forces(0.2, 0.3, 0.4, 0.1, **plain).drawn(rng, 3).T, [[0.2, 0.3, 0.4, 0.1]])
    np.testing.assert_allclose(Forces(1, 1, 2, 0, **plain).drawn(rng, 3).T, [[0.25, 0.25, 0.5, 0]])
    np.testing.assert_allclose(Forces(1, 1, 2, 0, normalised=False, **plain).drawn(rng, 3).T, [[1, 1, 2, 0]])
    drawn = np.hstack([Forces(0.2, 0.3, 0.4, 0.1).drawn(rng, 3) for _ in range(200)])
    assert drawn.shape == (4, 200)
    np.testing.assert_allclose(drawn.sum(axis=0), 1.0)
    assert drawn.std(axis=1).min() > 0.02
    by_gene = Forces(0.2, 0.3, 0.4, 0.1, draws="gene").drawn(rng, 200)
    np.testing.assert_allclose(by_gene.sum(axis=0), 1.0)
    assert by_gene.std(axis=1).min() > 0.02


def swarm(told: list[tuple[list[float], float]], **options: object) -> ParticleSwarm:
    """A swarm whose particles begin where they are told to, with scores of which larger is better."""
    strategy = ParticleSwarm(LINE, MAXIMISE, seed=0, **{**PLAIN, "popsize": len(told), **options})
    for number, (values, gain) in enumerate(told):
        strategy.inject(Candidate(number, None, LINE.genome(values)), scored(number, -gain))
    return strategy


def step(strategy: ParticleSwarm, number: int, gain: float | None) -> tuple[list[float], tuple[int, ...]]:
    """Where one particle goes, and whom it comes from; told this gain, or that it failed."""
    (proposal,) = strategy.ask(1)
    told = scored(number, -gain) if gain is not None else Evaluation(number, "failed", error="x")
    strategy.tell(Candidate(number, None, proposal.genome, proposal.parents), told)
    return list(proposal.genome.values), proposal.parents


def test_two_particles_by_hand() -> None:
    """All factors a quarter: v <- (v + (p - x) + (g - x) - (w - x)) / 4, x <- x + v, then half of it."""
    forces = {"inertia": 1.0, "cognitive": 1.0, "social": 1.0, "repel": 1.0}
    strategy = swarm([([2.0, 4.0], 1.0), ([6.0, 4.0], 0.0)], restart=None, **forces)
    # First: v = (4, 0), p = g = x, w = (6, 4): v <- ((4, 0) - (4, 0)) / 4 = 0, and a gene is drawn anew.
    first, parents = step(strategy, 2, 0.5)
    assert parents == (0,)
    assert sum(a != b for a, b in zip(first, [2.0, 4.0], strict=True)) == 1
    # Second: v = (-4, 0), p = x, g = (2, 4), w = x: v <- ((-4, 0) + (-4, 0)) / 4 = (-2, 0), x = (4, 4).
    second, parents = step(strategy, 3, 3.0)
    assert parents == (1, 0)
    np.testing.assert_allclose(second, [4.0, 4.0])
    # First again: v = 0, p = (2, 4), g = (4, 4), w = (6, 4): a quarter of (p - x) + (g - x) - (w - x) = (0, 4) - x;
    # its second step is half of that.
    wanted = np.array(first) + 0.5 * (np.array([0.0, 4.0]) - np.array(first)) / 4
    np.testing.assert_allclose(step(strategy, 4, 0.0)[0], wanted)
    # Second again: v = (-2, 0), p = g = x = (4, 4), w = (6, 4): v <- ((-2, 0) - (2, 0)) / 4 = (-1, 0).
    np.testing.assert_allclose(step(strategy, 5, 0.0)[0], [3.5, 4.0])


def test_a_particle_that_finds_nothing_better_goes_back() -> None:
    strategy = swarm([([2.0, 4.0], 0.0), ([8.0, 4.0], 1.0)], restart=2, repel=0.0, inertia=1, cognitive=1, social=2)
    # v = (6, 0), p = x, g = (8, 4): (6, 0) / 4 + 2 (6, 0) / 4 = (4.5, 0).
    np.testing.assert_allclose(step(strategy, 2, -1.0)[0], [6.5, 4.0])
    step(strategy, 3, -1.0)
    # (4.5, 0) / 4 + (-4.5, 0) / 4 + 2 (1.5, 0) / 4 = (0.75, 0), half of it.
    np.testing.assert_allclose(step(strategy, 4, None)[0], [6.875, 4.0])
    step(strategy, 5, -1.0)
    # Twice nothing better: from (2, 4) with no velocity, a quarter of 2 (6, 0) / 4.
    np.testing.assert_allclose(step(strategy, 6, -1.0)[0], [2.75, 4.0])
    step(strategy, 7, -1.0)
    # One more chance: (3, 0) / 4 + (-0.75, 0) / 4 + 2 (5.25, 0) / 4, an eighth.
    np.testing.assert_allclose(step(strategy, 8, -1.0)[0], [2.75 + (3 - 0.75 + 10.5) / 4 / 8, 4.0])


def test_all_of_a_batch_move_by_the_same_best() -> None:
    strategy = swarm([([2.0, 4.0], 0.0), ([8.0, 4.0], 1.0), ([5.0, 0.0], 0.5)])
    batch = strategy.ask(None)
    assert [proposal.parents for proposal in batch] == [(0, 1), (1,), (2, 1)]


def test_patience_ends_the_search() -> None:
    strategy = swarm([([2.0, 4.0], 0.0), ([8.0, 4.0], 1.0)], patience=2)
    for number in range(2, 6):
        step(strategy, number, 0.5)
    assert strategy.ask(3) == []
    strategy = swarm([([2.0, 4.0], 0.0), ([8.0, 4.0], 1.0)], patience=2)
    for number, gain in enumerate([0.5, 0.5, 2.0, 0.5, 0.5, 0.5], start=2):
        step(strategy, number, gain)
    assert strategy.ask(1)  # the third began it anew
    copied = ParticleSwarm(LINE, MAXIMISE, seed=1, **PLAIN, patience=2)
    copied.load_state_dict(unpack(pack(strategy.state_dict())))
    assert copied.ask(1) == strategy.ask(1)


def test_its_own_best_is_to_be_beaten() -> None:
    strategy = swarm([([2.0, 4.0], 0.0), ([8.0, 4.0], 1.0)])
    assert isinstance(strategy, Competing)
    asked = [Candidate(9, None, proposal.genome, proposal.parents) for proposal in strategy.ask(2)]
    assert [strategy.to_beat(candidate) for candidate in asked] == [0, 1]


def test_whole_numbers_move_too() -> None:
    spec = GenomeSpec((Gene("rank", "integer", low=1, high=40), Gene("weight", resolution=0.1)))
    player = Player(ParticleSwarm(spec, MAXIMISE, seed=0), spec)
    player.run(150)
    assert player.best < 0.005


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"popsize": 1}, "strategy.popsize is 1"),
        ({"inertia": -0.1}, "strategy.inertia is -0.1"),
        ({"cognitive": 0, "social": 0}, "strategy.cognitive and strategy.social are 0"),
        ({"step": 0, "least_step": 0}, "strategy.step is 0"),
        ({"least_step": 2.0}, "strategy.least_step is 2.0"),
        ({"decay": 1.5}, "strategy.decay is 1.5"),
        ({"draws": "genes"}, "strategy.draws is 'genes'; did you mean 'gene'"),
        ({"restart": 0}, "strategy.restart is 0"),
        ({"patience": 0}, "strategy.patience is 0"),
        ({"spec": MIXED}, "'embed/method' is categorical; strategy PSO handles continuous, integer genes"),
        ({"objectives": (Objective("a"), Objective("b"))}, "PSO was given 2 objectives"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParticleSwarm(**{"spec": LINE, "objectives": MAXIMISE, "seed": 0, **given})


def test_a_state_of_other_settings_is_refused() -> None:
    state = ParticleSwarm(LINE, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="PSO has forces"):
        ParticleSwarm(LINE, MAXIMISE, seed=0, repel=0.1).load_state_dict(state)
