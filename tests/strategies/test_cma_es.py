from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player, outcome, pack, play, sphere, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.cma_es import GRID_STD, CmaEs, cma


class TestCmaEs(LearningContract):
    smallest: ClassVar = {"popsize": 3}

    @pytest.fixture
    def make(self) -> Make:
        return CmaEs


class TestSeparableCmaEs(LearningContract):
    smallest: ClassVar = {"popsize": 3}

    @pytest.fixture
    def make(self) -> Make:
        return partial(CmaEs, separable=True, popsize=6)


class TestMixedCmaEs(LearningContract):
    spec = MIXED
    smallest: ClassVar = {"popsize": 3}

    @pytest.fixture
    def make(self) -> Make:
        return partial(CmaEs, popsize=8)


def box(n: int, **gene: float) -> GenomeSpec:
    return GenomeSpec(tuple(Gene(f"g{i}", **gene) for i in range(n)))


def test_first_generation_is_gaussian_around_the_start() -> None:
    spec = box(2, low=-2.0, high=2.0, initial=1.0)
    strategy = CmaEs(spec, MAXIMISE, seed=0, sigma0=0.02, popsize=2000)
    values = np.array([proposal.genome.values for proposal in strategy.ask()])
    # Standard deviation 0.02 of a range of 4; errors of mean and deviation are 0.002 and 2 %.
    assert np.abs(values.mean(axis=0) - 1.0).max() < 0.01
    assert np.abs(values.std(axis=0) / 0.08 - 1).max() < 0.1


def test_default_population_follows_the_tutorial() -> None:
    # Hansen's tutorial, table 1: 4 + floor(3 ln n).
    for genes, popsize in ((1, 4), (2, 6), (6, 9), (16, 12), (100, 17)):
        assert len(CmaEs(box(genes), MAXIMISE, seed=0).ask()) == popsize
    assert len(CmaEs(CONTINUOUS, MAXIMISE, seed=0).ask()) == 8  # four of its five genes are free


def test_same_as_pycma_driven_by_hand() -> None:
    rng = np.random.default_rng(4)
    options = {
        "bounds": [0, 1],
        "popsize": 8,
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": np.nan,
        "minstd": 1e-7,
        "verbose": -9,
        "verb_log": 0,
    }
    plain = cma.CMAEvolutionStrategy(5 * [0.5], 0.25, options)
    spec = box(5)
    player = Player(CmaEs(spec, MAXIMISE, seed=4, popsize=8), spec)
    for _ in range(30):
        points = plain.ask()
        assert [p.genome.values for p in player.ask()] == [tuple(point) for point in points]
        plain.tell(points, [sphere(spec, Genome(tuple(point))) for point in points])
        player.tell()


def test_a_generation_is_handed_out_in_any_portions() -> None:
    whole = CmaEs(CONTINUOUS, MAXIMISE, seed=2, popsize=8)
    parts = CmaEs(CONTINUOUS, MAXIMISE, seed=2, popsize=8)
    expected = whole.ask()
    assert [*parts.ask(3), *parts.ask(1), *parts.ask(None)] == expected
    assert parts.ask() == []
    assert parts.ask(1) == []


def test_waits_for_the_whole_generation_whatever_the_order() -> None:
    ordered, shuffled = (Player(CmaEs(CONTINUOUS, MAXIMISE, seed=6, popsize=8), CONTINUOUS) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert shuffled.ask() == ordered.ask()
        ordered.tell()
        shuffled.flight = [shuffled.flight[i] for i in rng.permutation(8)]
        shuffled.tell(7)
        assert shuffled.ask() == []
        shuffled.tell()


def test_failures_rank_behind_every_score() -> None:
    """Failing is the same as scoring worst, in the order asked."""
    scored, failing = (Player(CmaEs(CONTINUOUS, MAXIMISE, seed=8, popsize=9), CONTINUOUS) for _ in range(2))
    for generation in range(8):
        assert failing.ask() == scored.ask()
        scored.tell(make=lambda c: outcome(c.id, 1e9 if c.id % 3 == 0 else sphere(CONTINUOUS, c.genome)))
        bad = [Evaluation(0, "failed", error="x"), outcome(0, np.nan), outcome(0, -np.inf)][generation % 3]
        failing.tell(make=lambda c: bad if c.id % 3 == 0 else outcome(c.id, sphere(CONTINUOUS, c.genome)))  # noqa: B023


def test_a_generation_without_scores_is_drawn_anew_from_the_same_distribution() -> None:
    spec = box(3)
    strategy = CmaEs(spec, MAXIMISE, seed=0, sigma0=0.01, popsize=100)
    player = Player(strategy, spec)
    first = [p.genome for p in player.ask()]
    player.tell(make=lambda c: Evaluation(c.id, "failed", error="x"))
    second = np.array([p.genome.values for p in player.ask()])
    assert set(first).isdisjoint(Genome(tuple(v)) for v in second.tolist())
    # Still around the start: the error of the mean is 0.001, and that of the deviation 7 %.
    assert np.abs(second.mean(axis=0) - 0.5).max() < 0.005
    assert np.abs(second.std(axis=0) / 0.01 - 1).max() < 0.3


def test_only_the_order_of_scores_matters() -> None:
    plain, bent = (Player(CmaEs(CONTINUOUS, MAXIMISE, seed=1), CONTINUOUS) for _ in range(2))
    bent.score = lambda spec, genome: np.exp(30 * sphere(spec, genome)) * 1e200
    assert bent.run(100) == plain.run(100)


def test_equal_proposals_are_told_in_the_order_asked() -> None:
    spec = GenomeSpec((Gene("a", resolution=0.5), Gene("b", resolution=0.5)))
    strategy = CmaEs(spec, MAXIMISE, seed=0, popsize=30)
    genomes = [p.genome for p in strategy.ask()]
    assert len(set(genomes)) < 10
    for i, genome in enumerate(genomes):
        strategy.tell(Candidate(i, None, genome), outcome(i, sphere(spec, genome)))
    assert strategy.state_dict()["history"].tolist() == [[-sphere(spec, genome) for genome in genomes]]


def test_a_grid_keeps_the_population_apart() -> None:
    spec = box(4, resolution=0.05)
    player = Player(CmaEs(spec, MAXIMISE, seed=0, popsize=20), spec)
    player.run(3000)
    assert player.best == pytest.approx(0, abs=1e-20)  # 0.7 is on the grid
    assert len({p.genome for p in player.ask()}) > 1
    assert pytest.approx(0.01) == GRID_STD * 0.05


def test_pycma_learns_from_the_points_it_drew_not_from_the_grid() -> None:
    fine, grid = box(4), box(4, resolution=0.125)
    on_grid = Player(CmaEs(grid, MAXIMISE, seed=3), grid)
    free = Player(CmaEs(fine, MAXIMISE, seed=3), fine, lambda spec, genome: sphere(spec, grid.genome(genome.values)))
    for _ in range(3):  # as long as no standard deviation is near the grid's floor
        assert [p.genome for p in on_grid.ask()] == [grid.genome(p.genome.values) for p in free.ask()]
        on_grid.tell()
        free.tell()


def test_finds_optima_on_the_edge_of_the_bounds() -> None:
    spec = box(5, low=-1.0, high=1.0)
    player = Player(CmaEs(spec, MAXIMISE, seed=0), spec, lambda _, genome: -float(sum(genome.values)))
    player.run(600)
    assert player.best == pytest.approx(-5, abs=1e-3)


def test_starts_on_the_edge_of_the_bounds() -> None:
    spec = GenomeSpec((Gene("a", initial=0.0), Gene("b", initial=1.0), Gene("c", initial=1.0)))
    player = Player(CmaEs(spec, MAXIMISE, seed=0), spec)
    player.run(400)
    assert player.best < 1e-3


def test_long_after_convergence_it_still_proposes() -> None:
    spec = box(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        player = Player(CmaEs(spec, MAXIMISE, seed=0), spec)
        player.run(3000)
    assert player.best < 1e-12
    assert len({p.genome for p in player.ask()}) > 1


def test_three_hundred_genes_leave_the_global_random_state_alone() -> None:
    """From this dimension on pycma would adapt the step size with draws from numpy.random."""
    spec = box(300)
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = play(partial(CmaEs, separable=True), 0, 150, spec)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert first == play(partial(CmaEs, separable=True), 0, 150, spec)


def test_writes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    play(CmaEs, 0, 200)
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_a_fixed_gene_keeps_its_value() -> None:
    assert {genome.values[3] for genome in play(CmaEs, 0, 40)} == {0.4}


def test_separable_is_faster_where_genes_do_not_interact() -> None:
    """Ros and Hansen 2008: an axis-parallel ellipsoid needs variances only, which are learnt n times faster."""
    spec = box(20)
    scales = np.logspace(0, 4, 20)

    def ellipsoid(_: GenomeSpec, genome: Genome) -> float:
        return float(scales @ (np.array(genome.values) - 0.6) ** 2)

    def regret(separable: bool) -> float:
        best = []
        for seed in range(4):
            player = Player(CmaEs(spec, MAXIMISE, seed=seed, separable=separable), spec, ellipsoid)
            player.run(2400)
            best.append(np.log10(player.best))
        return float(np.mean(best))

    assert regret(separable=True) < regret(separable=False) - 1


def test_another_machine_goes_on_from_the_saved_generation() -> None:
    player = Player(CmaEs(CONTINUOUS, MAXIMISE, seed=0, popsize=6), CONTINUOUS)
    player.run(18)
    expected = [p.genome for p in player.ask(4)]
    state = unpack(pack(player.strategy.state_dict()))
    state["points"] = state["points"] * (1 + 1e-12)  # as if it had been computed with other rounding
    resumed = CmaEs(CONTINUOUS, MAXIMISE, seed=0, popsize=6)
    with pytest.warns(UserWarning, match="bit for bit"):
        resumed.load_state_dict(state)
    assert len(resumed.ask()) == 2
    for genome in expected:
        saved = min((g for g in resumed._genomes), key=lambda g: np.abs(np.subtract(g.values, genome.values)).max())
        assert np.allclose(saved.values, genome.values, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"popsize": 7}, "popsize"),
        ({"sigma0": 0.3}, "sigma0"),
        ({"separable": True}, "separable"),
        ({"spec": box(4)}, "genes"),
        ({"objectives": (Objective("other"),)}, "objective"),
    ],
)
def test_a_state_of_other_settings_is_refused(change: dict[str, object], named: str) -> None:
    arguments = {"spec": CONTINUOUS, "objectives": MAXIMISE, "seed": 0, "popsize": 8}
    state = unpack(pack(CmaEs(**arguments).state_dict()))
    with pytest.raises(ConfigError, match=named):
        CmaEs(**{**arguments, **change}).load_state_dict(state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma0": 0.0}, "strategy.sigma0 is 0.0"),
        ({"sigma0": 2.0}, "strategy.sigma0 is 2.0"),
        ({"sigma0": float("nan")}, "strategy.sigma0 is nan"),
        ({"popsize": 2}, "strategy.popsize is 2"),
        ({"seed": -1}, "search.seed is -1"),
        ({"objectives": (Objective("a"), Objective("b"))}, r"2 objectives \(a, b\)"),
        ({"objectives": ()}, "0 objectives"),
        ({"spec": box(2, low=0.5, high=0.5)}, "no free gene"),
        ({"spec": GenomeSpec((Gene("m", "categorical", choices=("ties",)),))}, "no free gene"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CmaEs(**{"spec": CONTINUOUS, "objectives": MAXIMISE, "seed": 0, **given})


def test_an_evaluation_without_the_objective_is_an_error() -> None:
    strategy = CmaEs(CONTINUOUS, MAXIMISE, seed=0)
    genome = strategy.ask(1)[0].genome
    with pytest.raises(FitnessError, match="candidate 5 has no objective 'score'"):
        strategy.tell(Candidate(5, None, genome), Evaluation(5, "ok", objectives={"accuracy": 0.5}))
