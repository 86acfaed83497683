from __future__ import annotations

from collections import Counter
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player, outcome, pack, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.catcma import PATIENCE, CatCma


class TestCatCma(LearningContract):
    smallest: ClassVar = {"popsize": 4}

    @pytest.fixture
    def make(self) -> Make:
        return CatCma


class TestMixedCatCma(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 4}

    @pytest.fixture
    def make(self) -> Make:
        return partial(CatCma, popsize=8)


def flags(count: int, **gene: object) -> GenomeSpec:
    return GenomeSpec(tuple(Gene(f"{i}", "boolean", **gene) for i in range(count)))


def missing(_: GenomeSpec, genome: Genome) -> float:
    return float(len(genome.values) - sum(bool(value) for value in genome.values))


def test_choices_that_the_space_starts_from_are_likely() -> None:
    spec = GenomeSpec(
        (
            Gene("on", "boolean", initial=True),
            Gene("off", "boolean", initial=False),
            Gene("open", "boolean"),
            Gene("method", "categorical", choices=("a", "b", "c"), initial="c"),
        )
    )

    def shares(start: float | None) -> list[float]:
        genomes = [p.genome.values for p in CatCma(spec, MAXIMISE, seed=0, popsize=2000, start=start).ask()]
        counts = [Counter(column) for column in zip(*genomes, strict=True)]
        return [count[key] / 2000 for count, key in zip(counts, (True, True, True, "c"), strict=True)]

    # Standard errors are below 0.012.
    assert shares(0.9) == pytest.approx([0.9, 0.1, 0.5, 0.9], abs=0.05)
    assert shares(None) == pytest.approx([0.5, 0.5, 0.5, 1 / 3], abs=0.05)


def test_first_generation_is_gaussian_around_the_start() -> None:
    spec = GenomeSpec((Gene("w", low=-2.0, high=2.0, initial=1.0), Gene("k", "integer", low=0, high=100, initial=20)))
    strategy = CatCma(spec, MAXIMISE, seed=0, sigma0=0.05, popsize=2000)
    values = np.array([proposal.genome.values for proposal in strategy.ask()])
    assert values.mean(axis=0) == pytest.approx([1.0, 20.0], abs=0.6)
    assert values.std(axis=0) == pytest.approx([0.2, 5.0], rel=0.1)


def test_finds_whole_numbers_grids_and_choices_together() -> None:
    spec = GenomeSpec(
        (
            *(Gene(f"x{i}", low=-1.0, high=3.0) for i in range(3)),
            *(Gene(f"k{i}", "integer", low=-5, high=15) for i in range(3)),
            *(Gene(f"g{i}", resolution=0.1) for i in range(3)),
            *(Gene(f"c{i}", "categorical", choices=tuple("abcde")) for i in range(3)),
        )
    )

    def score(_: GenomeSpec, genome: Genome) -> float:
        x, k, g, c = (genome.values[i : i + 3] for i in (0, 3, 6, 9))
        loss = sum((float(v) - 0.25) ** 2 for v in x) + sum((int(v) - 7) ** 2 for v in k)
        return loss + sum((float(v) - 0.3) ** 2 for v in g) + sum(v != "d" for v in c)

    player = Player(CatCma(spec, MAXIMISE, seed=0), spec, score)
    player.run(1200)
    assert player.best < 1e-3  # nothing discrete is wrong: the least mistake costs 0.01


def test_a_settled_search_that_finds_nothing_begins_anew() -> None:
    """A trap: flags are switched off one by one, and the best genome has all of them on."""
    spec = flags(6)

    def trap(_: GenomeSpec, genome: Genome) -> float:
        on = sum(bool(value) for value in genome.values)
        return -1.0 if on == 6 else on / 6

    again, once = (Player(CatCma(spec, MAXIMISE, seed=1, popsize=8, restart=r), spec, trap) for r in (True, False))
    for player in (again, once):
        player.run(8 * (PATIENCE + 50))
    assert again.strategy._starts > 1
    assert once.strategy._starts == 1
    assert np.mean([sum(map(bool, genome.values)) for genome in once.asked[-80:]]) < 1


def test_goes_on_the_same_after_beginning_anew() -> None:
    spec = flags(5)
    make = partial(CatCma, popsize=6)
    player = Player(make(spec, MAXIMISE, seed=0), spec, missing)
    while player.strategy._starts < 3:
        player.run(len(player.asked) + 6)
    player.ask(2)
    player.tell()
    state = pack(player.strategy.state_dict())
    resumed = Player(make(spec, MAXIMISE, seed=9), spec, missing)
    resumed.strategy.load_state_dict(unpack(state))
    begun = len(player.asked)
    assert resumed.run(60) == player.run(begun + 60)[begun:]


def test_failures_rank_behind_every_score() -> None:
    scored, failing = (Player(CatCma(MIXED, MAXIMISE, seed=8, popsize=9), MIXED) for _ in range(2))
    for generation in range(6):
        assert failing.ask() == scored.ask()
        scored.tell(make=lambda c: outcome(c.id, 1e9 if c.id % 3 == 0 else 0.1 * (c.id % 5)))
        bad = [Evaluation(0, "failed", error="x"), outcome(0, np.nan), outcome(0, -np.inf)][generation % 3]
        failing.tell(make=lambda c: bad if c.id % 3 == 0 else outcome(c.id, 0.1 * (c.id % 5)))  # noqa: B023


def test_only_the_order_of_scores_matters() -> None:
    plain, bent = (Player(CatCma(CONTINUOUS, MAXIMISE, seed=1), CONTINUOUS) for _ in range(2))
    score = plain.score
    bent.score = lambda spec, genome: float(np.exp(30 * score(spec, genome)) * 1e200)
    assert bent.run(100) == plain.run(100)


def test_another_machine_goes_on_from_the_saved_generation() -> None:
    make = partial(CatCma, popsize=6)
    player = Player(make(MIXED, MAXIMISE, seed=0), MIXED)
    player.run(18)
    player.ask(2)
    state = unpack(pack(player.strategy.state_dict()))
    state["numbers"] = np.full_like(state["numbers"], 0.25)  # as if they had been drawn otherwise
    resumed = make(MIXED, MAXIMISE, seed=0)
    with pytest.warns(UserWarning, match="CatCMA bit for bit"):
        resumed.load_state_dict(state)
    rest = resumed.ask()
    assert [proposal.genome.values[1] for proposal in rest] == [-1.0] * 4  # a quarter of the way from -2 to 2
    for number, proposal in enumerate(rest):
        resumed.tell(Candidate(number, None, proposal.genome), outcome(number, 0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma0": 0.0}, "strategy.sigma0 is 0.0"),
        ({"sigma0": float("nan")}, "strategy.sigma0 is nan"),
        ({"popsize": 3}, "strategy.popsize is 3"),
        ({"start": 1.0}, "strategy.start is 1.0"),
        ({"seed": -1}, "search.seed is -1"),
        ({"objectives": (Objective("a"), Objective("b"))}, r"2 objectives \(a, b\)"),
        ({"spec": GenomeSpec((Gene("m", "categorical", choices=("ties",)),))}, "no free gene"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CatCma(**{"spec": MIXED, "objectives": MAXIMISE, "seed": 0, **given})


@pytest.mark.parametrize(("change", "named"), [({"popsize": 7}, "popsize"), ({"start": None}, "start")])
def test_a_state_of_other_settings_is_refused(change: dict[str, object], named: str) -> None:
    state = unpack(pack(CatCma(MIXED, MAXIMISE, seed=0, popsize=8).state_dict()))
    with pytest.raises(ConfigError, match=named):
        CatCma(**{"spec": MIXED, "objectives": MAXIMISE, "seed": 0, "popsize": 8, **change}).load_state_dict(state)


def test_an_evaluation_without_the_objective_is_an_error() -> None:
    strategy = CatCma(MIXED, MAXIMISE, seed=0)
    genome = strategy.ask(1)[0].genome
    with pytest.raises(FitnessError, match="candidate 5 has no objective 'score'"):
        strategy.tell(Candidate(5, None, genome), Evaluation(5, "ok", objectives={"accuracy": 0.5}))
