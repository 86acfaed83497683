"""MAP's Bayesian sampling: bins of directions, and where its samples go."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MAXIMISE, Make, Player

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.strategies.amortized_pareto import AmortizedPareto
from evomerge.strategies.bases.angle_bins import AngleBins
from evomerge.strategies.bases.quadratic import Quadratic, coefficients

PLANE = GenomeSpec((Gene("a"), Gene("b")))


class TestBayesianMap(StrategyContract):
    rounds: ClassVar = 6

    @pytest.fixture
    def make(self) -> Make:
        return partial(AmortizedPareto, verify=8, popsize=8, generations=2, sampling="bayesian")


def test_directions_are_binned_by_their_angles() -> None:
    """By hand: 4 bins of 22.5 degrees in the plane; in space 4 x 4, the first angle being that from the first axis."""
    degrees = np.deg2rad([0, 22, 23, 46, 68, 90])
    assert AngleBins(2).of(0.5 * np.column_stack([np.cos(degrees), np.sin(degrees)])).tolist() == [0, 0, 1, 2, 3, 3]
    assert AngleBins(3).of(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])).tolist() == [0, 12, 15, 10]
    assert AngleBins(3).count == 16
    assert AngleBins(6).count == 32


@pytest.mark.parametrize("genes", [1, 2, 3, 5])
def test_what_is_drawn_for_a_bin_lies_in_it(genes: int) -> None:
    bins, rng = AngleBins(genes), np.random.default_rng(0)
    for number in range(bins.count):
        points = np.array([bins.draw(np.eye(bins.count)[number], rng) for _ in range(20)])
        assert (bins.of(points) == number).all()
        assert points.min() >= 0
        assert 0.8 < points.max() <= 1
        assert points.max(axis=1).min() >= 0.2


def test_what_a_fit_misses_is_what_it_misses_without_the_point() -> None:
    rng = np.random.default_rng(1)
    points, values = rng.random((15, 2)), rng.normal(size=15)
    missed = Quadratic.fit(points, values, "identity").missed(points, values)
    for k in np.flatnonzero(np.abs(missed) < 5)[:6]:
        rest = np.arange(15) != k
        without = Quadratic.fit(points[rest], values[rest], "identity").predict(points[k : k + 1])[0]
        assert missed[k] == pytest.approx(values[k] - without, abs=0.02)


def test_a_bin_without_points_is_as_likely_as_the_worst() -> None:
    rng = np.random.default_rng(2)
    points = 0.1 + 0.8 * rng.random((12, 2))
    points = points[AngleBins(2).of(points) != 3]
    chances = AngleBins(2).chances(points, rng.random((len(points), 1)), "identity")
    assert chances.sum() == pytest.approx(1)
    assert chances[3] == chances.max() > 0


def test_samples_go_where_quadratics_miss() -> None:
    """A ripple near the second axis alone: there go most of the second half of the samples, and a fourth of Sobol's."""

    def score(genome: tuple[float, ...]) -> float:
        a, b = genome
        return a + b + (0.3 * np.sin(25 * b) if b > 2.41 * a else 0.0)

    shares = {}
    for sampling in ("sobol", "bayesian"):
        strategy = AmortizedPareto(PLANE, MAXIMISE, seed=3, samples=40, verify=4, sampling=sampling)
        found = []
        for number in range(40):
            (proposal,) = strategy.ask(1)
            found.append(proposal.genome.values)
            told = Evaluation(number, "ok", objectives={"score": score(found[-1])})
            strategy.tell(Candidate(number, None, proposal.genome), told)
        shares[sampling] = float(np.mean(AngleBins(2).of(np.array(found[20:])) == 3))
    assert shares["bayesian"] > 0.6
    assert shares["sobol"] < 0.4


def test_a_state_of_before_is_loaded() -> None:
    player = Player(AmortizedPareto(PLANE, MAXIMISE, seed=1, verify=4, popsize=8, generations=2), PLANE)
    player.run(20)
    state = player.strategy.state_dict()
    assert "sampling" not in state["settings"]
    state["counts"] = state["counts"][:3]
    other = AmortizedPareto(PLANE, MAXIMISE, seed=1, verify=4, popsize=8, generations=2)
    other.load_state_dict(state)
    assert other.ask(1)[0].genome == player.strategy.ask(1)[0].genome


def test_what_cannot_be_binned_is_said() -> None:
    with pytest.raises(ConfigError, match=r"sampling is 'baysian'.*bayesian"):
        AmortizedPareto(PLANE, MAXIMISE, seed=0, sampling="baysian")
    eleven = GenomeSpec(tuple(Gene(f"g{i}") for i in range(11)))
    assert coefficients(11) == 78
    with pytest.raises(ConfigError, match="bayesian with 11 free genes; at most 10"):
        AmortizedPareto(eleven, MAXIMISE, seed=0, sampling="bayesian")
