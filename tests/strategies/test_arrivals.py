"""CMA-ES and CatCMA that move as evaluations arrive: they never wait, and learn as much from as many."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player, pack, sphere, unit, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.bases.arrivals import longest
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs

ARRIVE = {
    "cma_es": partial(CmaEs, asynchronous=True),
    "separable": partial(CmaEs, asynchronous=True, separable=True, popsize=4),
    "catcma": partial(CatCma, asynchronous=True),
}
SPECS = {"numbers": CONTINUOUS, "mixed": MIXED}


class TestCmaEsArriving(StrategyContract):
    @pytest.fixture
    def make(self) -> Make:
        return ARRIVE["cma_es"]


class TestCatCmaArriving(StrategyContract):
    @pytest.fixture
    def make(self) -> Make:
        return ARRIVE["catcma"]


TEN = GenomeSpec(tuple(Gene(f"layers.{i}/weight") for i in range(10)))
CHOICES = GenomeSpec(tuple(Gene(f"{i}", "categorical", choices=tuple("abc"), initial="a") for i in range(8)))


def rastrigin(spec: GenomeSpec, genome: Genome) -> float:
    x = (unit(spec, genome) - 0.6) * 8
    return float(np.mean(x**2 + 10 - 10 * np.cos(2 * np.pi * x)))


def best_of(make: Make, score: Callable[[GenomeSpec, Genome], float], workers: int, evaluations: int) -> float:
    """The median over seeds of the best that so many evaluations find, on workers of log-normal speed."""
    found = []
    for seed in range(7):
        rng, player = np.random.default_rng(seed), Player(make(TEN, MAXIMISE, seed=seed), TEN, score)
        running: list[tuple[float, int]] = []
        now, told = 0.0, 0
        while told < evaluations:
            first = len(player.asked)
            for number, _ in enumerate(player.ask(workers - len(running)), start=first):
                heapq.heappush(running, (now + rng.lognormal(0, 1), number))
            now, number = heapq.heappop(running)
            place = next(i for i, candidate in enumerate(player.flight) if candidate.id == number)
            player.flight.insert(0, player.flight.pop(place))
            player.tell(1)
            told += 1
        found.append(player.best)
    return float(np.median(found))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [CmaEs, CatCma])
def test_as_good_as_by_generations(strategy: Make) -> None:
    """Per evaluation, workers as many as a generation has members; the sphere falls tenfold in 100 evaluations."""
    popsize = 4 + int(3 * math.log(10))
    by_generations = partial(strategy, popsize=popsize)
    arriving = partial(by_generations, asynchronous=True)
    for score, evaluations, factor in ((sphere, 400, 10.0), (rastrigin, 800, 1.1)):
        expected = best_of(by_generations, score, popsize, evaluations)
        assert best_of(arriving, score, popsize, evaluations) <= factor * expected


@pytest.mark.parametrize("name", ARRIVE)
def test_there_is_always_one_more(name: str) -> None:
    strategy = ARRIVE[name](CONTINUOUS, MAXIMISE, seed=0)
    assert strategy.asynchronous
    assert len(strategy.ask(1000)) == 1000
    assert len(strategy.ask(1)) == 1
    assert len(strategy.ask()) == strategy.popsize
    assert strategy.ask(0) == []


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ARRIVE)
def test_a_saved_state_goes_on_as_if_nothing_had_been(name: str, spec: str) -> None:
    """With some in flight, some told and not learnt from, failures, and equal genomes."""
    make, genes = ARRIVE[name], SPECS[spec]
    whole, rng = Player(make(genes, MAXIMISE, seed=3), genes), np.random.default_rng(0)
    for step in range(60):
        whole.ask(int(rng.integers(4)))
        rng.shuffle(whole.flight)  # type: ignore[arg-type]
        for _ in range(int(rng.integers(len(whole.flight) + 1))):
            failed = rng.random() < 0.1
            whole.tell(1, (lambda c: Evaluation(c.id, "failed", error="no")) if failed else None)
        if step % 7:
            continue
        other = Player(make(genes, MAXIMISE, seed=99), genes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.strategy.load_state_dict(unpack(pack(whole.strategy.state_dict())))
        assert pack(other.strategy.state_dict()) == pack(whole.strategy.state_dict())
    other.flight, other.asked = list(whole.flight), list(whole.asked)
    other.strategy.load_state_dict(unpack(pack(whole.strategy.state_dict())))
    for player in (whole, other):
        player.tell()
        player.run(len(player.asked) + 50, 3)
    assert other.asked == whole.asked


def test_what_is_in_flight_is_kept_on_a_machine_that_draws_others() -> None:
    player = Player(ARRIVE["cma_es"](CONTINUOUS, MAXIMISE, seed=3), CONTINUOUS)
    player.ask(20)
    player.tell(13)
    state = player.strategy.state_dict()
    state["points"] = state["points"] * 0.5
    other = ARRIVE["cma_es"](CONTINUOUS, MAXIMISE, seed=3)
    with pytest.warns(UserWarning, match="does not repeat"):
        other.load_state_dict(state)
    assert np.allclose(other.state_dict()["points"], state["points"])
    for candidate in player.flight:  # of the machine before: not these
        other.tell(candidate, Evaluation(candidate.id, "ok", objectives={"score": 1.0}))
    assert len(other.state_dict()["in_flight"]) == 7


@pytest.mark.parametrize("name", ARRIVE)
def test_a_state_is_not_that_of_one_that_waits(name: str) -> None:
    waits = ARRIVE[name].func(CONTINUOUS, MAXIMISE, seed=0, **{**ARRIVE[name].keywords, "asynchronous": False})
    arrives = ARRIVE[name](CONTINUOUS, MAXIMISE, seed=0)
    for one, other in ((waits, arrives), (arrives, waits)):
        with pytest.raises(ConfigError, match="has asynchronous"):
            one.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", ARRIVE)
def test_a_candidate_told_twice_or_never_asked_counts_once_or_not(name: str) -> None:
    strategy = ARRIVE[name](CONTINUOUS, MAXIMISE, seed=0)
    first = strategy.ask(1)[0]
    ok = Evaluation(0, "ok", objectives={"score": 1.0})
    strategy.tell(Candidate(5, None, CONTINUOUS.initial), ok)
    for _ in range(2):
        strategy.tell(Candidate(0, None, first.genome), ok)
    assert len(strategy.state_dict()["gains"]) == 1


def test_old_points_are_shortened() -> None:
    """Where many more work than a generation has members, some arrive dozens of moves late: nothing runs away."""
    for name in ARRIVE:
        player = Player(ARRIVE[name](TEN, MAXIMISE, seed=0), TEN)
        late = list(player.ask(40))
        kept = player.flight[:]
        player.flight = []
        player.run(400, 4)
        before = player.best
        player.flight = kept[: len(late)]
        player.tell()
        player.run(len(player.asked) + 300, 4)
        assert player.best <= before
        assert all(np.isfinite(list(genome.values)).all() for genome in player.asked)
    assert longest(4) == pytest.approx(2 + 8 / 6)


def test_a_new_beginning_forgets_what_was_drawn_before() -> None:
    """CatCMA settles on a plateau and begins anew; what was in flight then teaches it nothing."""
    player = Player(ARRIVE["catcma"](CHOICES, MAXIMISE, seed=0, popsize=4), CHOICES, lambda _, genome: 1.0)
    player.ask(3)
    kept, player.flight = player.flight, []
    player.run(2000, 4)
    assert player.strategy._starts > 1
    moves = player.strategy._moves
    player.flight = kept
    player.tell()
    player.ask(3)
    player.tell()
    assert player.strategy._moves == moves
    player.ask(1)
    player.tell()
    assert player.strategy._moves == moves + 1
