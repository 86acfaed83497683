from __future__ import annotations

import logging
import sys
import warnings
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.misuse_contract import MisuseContract
from contracts.other_process import elsewhere, in_new_process
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import (
    CONTINUOUS,
    MAXIMISE,
    MIXED,
    Make,
    Player,
    continue_from,
    outcome,
    pack,
    play,
    sphere,
    unpack,
)

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.optuna_strategy import OptunaStrategy
from evomerge.strategies.optuna_samplers import Gp, Nsga2, Nsga3, Tpe
from evomerge.strategies.random_search import RandomSearch

TWO = (Objective("far", "minimize"), Objective("near", "maximize"))


class TestTpe(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"startup": 1, "candidates": 1, "batch": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Tpe, candidates=8, memory=40)  # so that the contract's searches forget


class TestNsga2(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 2}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Nsga2, popsize=8)


class TestNsga3(MisuseContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 2}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Nsga3, popsize=6)


class TestGp(MisuseContract):
    smallest: ClassVar = {"startup": 8}
    rounds = 1

    @pytest.fixture
    def make(self) -> Make:
        return partial(Gp, startup=10, batch=3)


SHORT_GP = partial(Gp, startup=4, batch=3)


def test_gp_replays_and_resumes_in_another_process() -> None:
    """A contract in small: a proposal costs a tenth of a second."""
    expected = play(SHORT_GP, 1, 8, MIXED)
    player = Player(SHORT_GP(MIXED, MAXIMISE, seed=1), MIXED)
    assert player.run(6) == expected[:6]
    state = pack(player.strategy.state_dict())
    assert elsewhere(continue_from, SHORT_GP, state, 2, MIXED) == expected[6:]
    assert len(set(expected)) == 8


def test_gp_survives_failures_and_takes_two_objectives() -> None:
    strategy = SHORT_GP(CONTINUOUS, TWO, seed=0)
    for i in range(10):
        genome = strategy.ask(1)[0].genome
        CONTINUOUS.check(genome)
        failed = Evaluation(i, "failed", error="x")
        strategy.tell(Candidate(i, None, genome), failed if i % 3 == 1 else scored(i, genome))


def best_of(make: Make, evaluations: int) -> float:
    """Mean of log10 of the best value on a sphere, over seeds."""
    spec = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=3.0, initial=-0.5) for i in range(4)))
    found = []
    for seed in range(3):
        player = Player(make(spec, MAXIMISE, seed=seed), spec)
        player.run(evaluations)
        found.append(np.log10(player.best))
    return float(np.mean(found))


@pytest.mark.parametrize(("make", "evaluations"), [(partial(Tpe, batch=1), 60), (SHORT_GP, 18), (Nsga2, 240)])
def test_better_than_random_on_a_sphere(make: Make, evaluations: int) -> None:
    assert best_of(make, evaluations) < best_of(RandomSearch, evaluations) - np.log10(2)


PLANE = GenomeSpec((Gene("x"), Gene("y"), Gene("z"), Gene("m", "categorical", choices=("bad", "good"))))


def scored(number: int, genome: Genome) -> Evaluation:
    """Two objectives that disagree about ``x``; the other genes only hurt."""
    x, y = float(genome.values[0]), float(genome.values[1])
    loss = (y - 0.5) ** 2 + (len(genome) == 4 and genome.values[3] == "bad") + (float(genome.values[2]) - 0.5) ** 2
    return Evaluation(number, "ok", objectives={"far": x + loss, "near": x**2 - loss})


def hypervolume(strategy: OptunaStrategy | RandomSearch, evaluations: int) -> float:
    """The area between the front and the point (1, -1), in gains."""
    points = []
    while len(points) < evaluations:
        for proposal in strategy.ask():
            evaluation = scored(len(points), proposal.genome)
            strategy.tell(Candidate(len(points), None, proposal.genome), evaluation)
            points.append((1 - evaluation.objectives["far"], evaluation.objectives["near"] + 1))
    area = top = 0.0
    for far, near in sorted(((far, near) for far, near in points if far > 0 and near > 0), reverse=True):
        area += far * max(near - top, 0.0)
        top = max(top, near)
    return area


@pytest.mark.parametrize(("kind", "evaluations"), [(Nsga2, 240), (Nsga3, 240)])
def test_fronts_are_better_than_those_of_random_search(kind: type[OptunaStrategy], evaluations: int) -> None:
    found = np.mean([hypervolume(kind(PLANE, TWO, seed=seed), evaluations) for seed in range(2)])
    chance = np.mean([hypervolume(RandomSearch(PLANE, TWO, seed=seed), evaluations) for seed in range(2)])
    assert found > chance * 1.03


def test_tpe_takes_two_objectives() -> None:
    assert hypervolume(Tpe(PLANE, TWO, seed=0), 40) > 0.5


def test_nsga3_goes_on_the_same_after_loading() -> None:
    make = partial(Nsga3, popsize=6)
    player = Player(make(MIXED, MAXIMISE, seed=2), MIXED)
    player.run(30)
    state = pack(player.strategy.state_dict())
    assert continue_from(make, state, 30, MIXED) == player.run(60)[30:]


def out_of_order(strategy: OptunaStrategy, spec: GenomeSpec) -> list[Genome]:
    """What is asked in portions and told in any order, every seventh evaluation having failed."""
    player = Player(strategy, spec)
    rng = np.random.default_rng(1)
    while len(player.asked) < 250:
        player.ask(int(rng.integers(1, 16)))
        player.flight = [player.flight[i] for i in rng.permutation(len(player.flight))]
        told = int(rng.integers(len(player.flight) + 1))
        player.tell(
            told, lambda c: outcome(c.id, sphere(spec, c.genome)) if (c.id + 1) % 7 else Evaluation(c.id, "failed")
        )
    return player.asked


@pytest.mark.parametrize(("kind", "spec"), [(Nsga2, MIXED), (Nsga2, CONTINUOUS), (Nsga3, MIXED)])
def test_forgetting_generations_that_are_gone_changes_nothing(
    kind: type[Nsga2], spec: GenomeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering = kind(spec, MAXIMISE, seed=0, popsize=6)
    monkeypatch.setattr("evomerge.strategies.optuna_samplers.FORGET_EVERY", 20)
    forgetting = kind(spec, MAXIMISE, seed=0, popsize=6)
    assert out_of_order(forgetting, spec) == out_of_order(remembering, spec)
    assert len(remembering.state_dict()["points"]) >= 250
    assert len(forgetting.state_dict()["points"]) < 100


def test_models_remember_the_best_and_the_latest() -> None:
    strategy = Tpe(GenomeSpec((Gene("x"),)), MAXIMISE, seed=0, memory=60)
    gains = np.random.default_rng(0).permutation(30) / 30
    for i, gain in enumerate(gains):
        strategy.tell(Candidate(i, None, strategy.ask(1)[0].genome), outcome(i, -float(gain)))
    state = strategy.state_dict()  # after as many as half of the memory, all of them are kept
    assert state["gains"].ravel().tolist() == gains.tolist()
    waiting = strategy.ask(2)  # neither forgotten nor counted
    for i in range(30):
        strategy.tell(Candidate(i, None, strategy.ask(1)[0].genome), Evaluation(i, "failed"))
    state = strategy.state_dict()
    kept = [*np.sort(gains)[-7:], *[np.nan] * 25]  # a quarter of thirty, the two in flight, and failures
    np.testing.assert_array_equal(np.sort(state["gains"].ravel()), np.sort(kept))
    assert (state["states"] == 0).sum() == 2
    strategy.tell(Candidate(60, None, waiting[0].genome), outcome(60, -2.0))
    assert np.nanmax(strategy.state_dict()["gains"]) == 2.0


def test_the_best_of_several_objectives_are_remembered() -> None:
    strategy = Tpe(GenomeSpec((Gene("x"),)), TWO, seed=0, memory=40)
    front = {0: (0.0, 0.0), 1: (0.5, 0.5), 2: (1.0, 1.0)}
    for i in range(40):
        far, near = front.get(i, (1.0 + i, -1.0))
        evaluation = Evaluation(i, "ok", objectives={"far": far, "near": near})
        strategy.tell(Candidate(i, None, strategy.ask(1)[0].genome), evaluation)
    kept = strategy.state_dict()["gains"].tolist()
    assert [[-far, near] for far, near in front.values()] == kept[:3]
    assert kept[5:] == [[-1.0 - i, -1.0] for i in range(25, 40)]


BOX = GenomeSpec(tuple(Gene(f"g{i}") for i in range(4)))


def taught(kind: type[OptunaStrategy], **options: int) -> tuple[OptunaStrategy, list[Genome]]:
    """A strategy that was given the start and what random search found."""
    strategy = kind(BOX, MAXIMISE, seed=0, **options)
    given = [BOX.initial, *(proposal.genome for proposal in RandomSearch(BOX, MAXIMISE, seed=1).ask(59))]
    for number, genome in enumerate(given):
        strategy.inject(Candidate(number, None, genome), outcome(number, sphere(BOX, genome)))
    return strategy, given


def test_tpe_models_what_was_injected() -> None:
    strategy, given = taught(Tpe)
    asked = [proposal.genome for proposal in strategy.ask(12)]
    assert np.mean([sphere(BOX, g) for g in asked]) < 0.5 * np.mean([sphere(BOX, g) for g in given])


def test_nsga2_breeds_what_was_injected() -> None:
    strategy, given = taught(Nsga2, popsize=20)
    best = sorted(given, key=lambda genome: sphere(BOX, genome))[:20]
    known = [{genome.values[i] for genome in best} for i in range(4)]
    inherited = [value in known[i] for p in strategy.ask(20) for i, value in enumerate(p.genome.values)]
    assert np.mean(inherited) > 0.6  # one gene of four is drawn anew


def test_the_first_proposal_is_the_start() -> None:
    for kind in (Tpe, Nsga2, Nsga3, Gp):
        assert kind(MIXED, MAXIMISE, seed=5).ask(1)[0].genome == MIXED.initial


def test_tpe_learns_where_candidates_fail() -> None:
    spec = GenomeSpec((Gene("x"), Gene("y")))
    strategy = Tpe(spec, MAXIMISE, seed=0)
    failed = []
    for i in range(80):
        genome = strategy.ask(1)[0].genome
        failed.append(float(genome.values[0]) > 0.5)
        bad = Evaluation(i, "failed", error="out of memory")
        strategy.tell(Candidate(i, None, genome), bad if failed[-1] else outcome(i, -float(genome.values[1])))
    assert sum(failed[10:]) < 20


def test_proposals_never_wait() -> None:
    strategy = Tpe(MIXED, MAXIMISE, seed=0)
    assert len(strategy.ask(30)) == 30
    assert len(strategy.ask()) == 8


def test_nothing_is_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        for kind in (Tpe, Nsga2, Nsga3):
            Player(kind(MIXED, MAXIMISE, seed=0), MIXED).run(30)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_torch_is_not_needed_until_a_process_is_fitted() -> None:
    assert in_new_process(torch_after_tpe) == [False, True]


def torch_after_tpe() -> list[bool]:
    """Whether torch is loaded after TPE, and after GP."""
    loaded = []
    for make in (Tpe, SHORT_GP):
        play(make, 0, 14 if make is Tpe else 9)
        loaded.append("torch" in sys.modules)
    return loaded


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Tpe, {"batch": 0}, "strategy.batch is 0"),
        (Tpe, {"startup": 0}, "strategy.startup is 0"),
        (Gp, {"startup": 0}, "strategy.startup is 0"),
        (Tpe, {"candidates": 0}, "strategy.candidates is 0"),
        (Tpe, {"memory": 39}, "strategy.memory is 39; at least 40 and twice"),
        (Gp, {"memory": 99, "startup": 50}, "strategy.memory is 99; .* here 100"),
        (Tpe, {"seed": -1}, "search.seed is -1"),
        (Tpe, {"objectives": ()}, "0 objectives"),
        (Nsga2, {"popsize": 1}, "strategy.popsize is 1"),
        (Nsga3, {"crossover": 1.5}, "strategy.crossover is 1.5"),
        (Nsga2, {"mutation": -0.1}, "strategy.mutation is -0.1"),
        (Tpe, {"spec": GenomeSpec((Gene("a", low=0.4, high=0.4),))}, "no free gene"),
    ],
)
def test_wrong_arguments_are_named(kind: type[OptunaStrategy], given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**{"spec": MIXED, "objectives": MAXIMISE, "seed": 0, **given})


def test_a_state_of_other_settings_is_refused() -> None:
    state = unpack(pack(Nsga2(MIXED, MAXIMISE, seed=0, popsize=6).state_dict()))
    with pytest.raises(ConfigError, match="NSGA-II has popsize 6, this one has 8"):
        Nsga2(MIXED, MAXIMISE, seed=0, popsize=8).load_state_dict(state)


def test_an_evaluation_without_an_objective_is_an_error() -> None:
    strategy = Tpe(PLANE, TWO, seed=0)
    genome = strategy.ask(1)[0].genome
    with pytest.raises(FitnessError, match="candidate 5 has no objective 'near'"):
        strategy.tell(Candidate(5, None, genome), Evaluation(5, "ok", objectives={"far": 0.5}))
