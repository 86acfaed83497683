"""Restarts of CMA-ES and CatCMA: populations that grow, on pycma's own criteria, and resumed exactly."""

from __future__ import annotations

import math
import zlib
from functools import partial

import numpy as np
import pytest
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player, outcome, pack, sphere, unit, unpack

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.bases.pycma import losses_of
from evomerge.strategies.bases.restarts import LARGEST, Restarts, Run
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs

BOX = GenomeSpec(tuple(Gene(f"g{i}") for i in range(4)))
PLANE = GenomeSpec((Gene("a"), Gene("b")))


def rastrigin(spec: GenomeSpec, genome: Genome) -> float:
    x = (unit(spec, genome) - 0.7) * 8
    return float(np.sum(x**2 + 10 - 10 * np.cos(2 * np.pi * x)))


def test_ipop_doubles_the_population() -> None:
    restarts, run, found = Restarts("ipop", 6, 0), Run(6, large=False), []
    for _ in range(4):
        run = restarts.next(run, 100)
        found.append(run)
    assert found == [Run(12), Run(24), Run(48), Run(96)]
    assert Restarts("ipop", LARGEST, 0).next(run, 1).popsize == LARGEST


def test_bipop_takes_the_regime_that_has_taken_less() -> None:
    u = np.random.default_rng([7, 2])
    restarts = Restarts("bipop", 10, 7)
    first = restarts.next(Run(10, large=False), 300)
    assert first == Run(20)  # a large one comes after the first
    # small 300, large 500: a small one, of 10 (2/2)^(U^2), with half of 500 evaluations at most
    _, step = u.random(2)
    second = restarts.next(first, 500)
    assert second == Run(10, 10 ** (-2 * step), 250.0, large=False)
    # small 550, large 500
    third = restarts.next(second, 250)
    assert third == Run(40)
    # small 550, large 1300: small ones until they have taken as much
    share, step = u.random(2)
    assert restarts.next(third, 800) == Run(int(10 * 2 ** (share**2)), 10 ** (-2 * step), 400.0, large=False)


def test_scores_keep_their_order_and_failures_come_last() -> None:
    gains = np.array([0.5, np.nan, 0.75, 0.5, np.nan])
    ranks = np.array([1, 3, 0, 2, 4])
    losses = losses_of(gains, ranks)
    assert losses[2] == -0.75
    assert losses[0] == -0.5
    assert np.argsort(losses).tolist() == [2, 0, 3, 1, 4]
    assert losses.max() == pytest.approx(-0.5, abs=1e-15)


def sizes(strategy: CmaEs | CatCma) -> list[int]:
    """Of the populations of the generations, each once."""
    return list(dict.fromkeys(strategy.state_dict()["sizes"].tolist()))


def test_until_the_first_restart_nothing_differs() -> None:
    plain, again = (Player(CmaEs(BOX, MAXIMISE, seed=1, popsize=8, restarts=r), BOX) for r in (None, "ipop"))
    ran = again.run(8 * 20)
    assert "sizes" not in again.strategy.state_dict()
    assert ran == plain.run(8 * 20)


def test_ipop_finds_what_one_run_misses() -> None:
    """Rastrigin: a small population ends in a local optimum, and stays there."""
    runs = [CmaEs(PLANE, MAXIMISE, seed=3, popsize=6, restarts=kind) for kind in (None, "ipop", "bipop")]
    once, ipop, bipop = (Player(strategy, PLANE, rastrigin) for strategy in runs)
    for player in (once, ipop, bipop):
        player.run(2000)
    assert once.best > 0.9
    assert ipop.best < 1e-3
    assert sizes(ipop.strategy) == [6, 12, 24, 48]
    assert bipop.best < 1e-3


def test_bipop_has_small_runs_too() -> None:
    player = Player(CmaEs(PLANE, MAXIMISE, seed=3, popsize=6, restarts="bipop"), PLANE, rastrigin)
    player.run(2000)
    found = [len(gains) for gains in player.strategy._history]
    first = [size for i, size in enumerate(found) if i == 0 or size != found[i - 1]]
    assert first[:3] == [6, 12, 6]


RESTARTED = {
    "ipop": partial(CmaEs, popsize=5, restarts="ipop"),
    "bipop": partial(CmaEs, popsize=5, restarts="bipop"),
    "as they arrive": partial(CmaEs, popsize=5, restarts="ipop", asynchronous=True),
    "catcma": partial(CatCma, popsize=5, restart="ipop"),
    "catcma as they arrive": partial(CatCma, popsize=5, restart="ipop", asynchronous=True),
}


def flat(spec: GenomeSpec, genome: Genome) -> float:
    """Few values, so that runs end soon."""
    return round(sphere(spec, genome), 1)


@pytest.mark.parametrize("name", RESTARTED)
def test_saved_and_loaded_in_a_later_run_it_goes_on_the_same(name: str) -> None:
    make: Make = RESTARTED[name]
    spec = GenomeSpec((Gene("a", "boolean"), Gene("b", "categorical", choices=tuple("xyz")))) if "cat" in name else BOX

    def evaluate(player: Player) -> None:
        player.tell(
            make=lambda c: (
                Evaluation(c.id, "failed", error="x")
                if zlib.crc32(repr(c.genome.values).encode()) % 9 == 0
                else outcome(c.id, flat(spec, c.genome))
            )
        )

    player = Player(make(spec, MAXIMISE, seed=2), spec, flat)
    while player.strategy.popsize < 20:
        player.ask(5)
        evaluate(player)
        assert len(player.asked) < 5000
    player.ask(7)
    player.tell(3)
    state = pack(player.strategy.state_dict())
    resumed = Player(make(spec, MAXIMISE, seed=9), spec, flat)
    resumed.strategy.load_state_dict(unpack(state))
    assert pack(resumed.strategy.state_dict()) == state
    resumed.flight, resumed.asked = list(player.flight), list(player.asked)
    for each in (player, resumed):
        evaluate(each)
    for _ in range(120):
        for each in (player, resumed):
            each.ask(5)
            evaluate(each)
    assert resumed.asked == player.asked
    assert len(sizes(player.strategy)) > 2 if "arrive" not in name else player.strategy.popsize >= 20


def test_a_run_anew_begins_near_the_start_where_genes_say_so() -> None:
    spec = GenomeSpec((Gene("near", initial=0.2, spread=0.01), Gene("free", initial=0.2)))
    begun = []
    for seed in range(12):
        player = Player(CmaEs(spec, MAXIMISE, seed=seed, popsize=4, restarts="ipop"), spec, lambda s, g: 0.5)
        while player.strategy.popsize == 4:
            player.run(len(player.asked) + 4)
        begun.append(np.array(player.strategy._cma.mean))
    near, free = np.array(begun).T
    assert np.abs(near - 0.2).max() < 0.05
    assert free.std() > 0.15  # uniform: 0.29


def test_mixed_genes_keep_what_they_can_be() -> None:
    player = Player(CmaEs(MIXED, MAXIMISE, seed=0, popsize=4, restarts="bipop"), MIXED, flat)
    for genome in player.run(800):
        MIXED.check(genome)
    assert len(sizes(player.strategy)) > 1


def test_another_kind_of_restarts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.restarts is 'jpop'"):
        CmaEs(BOX, MAXIMISE, seed=0, restarts="jpop")  # type: ignore[arg-type]
    state = unpack(pack(CmaEs(BOX, MAXIMISE, seed=0, restarts="ipop").state_dict()))
    with pytest.raises(ConfigError, match="restarts"):
        CmaEs(BOX, MAXIMISE, seed=0, restarts="bipop").load_state_dict(state)
    assert math.isinf(Run(4).most)
