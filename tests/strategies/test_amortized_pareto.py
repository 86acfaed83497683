from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective, ParetoArchive
from evomerge.strategies.amortized_pareto import AmortizedPareto
from evomerge.strategies.bases.quadratic import Quadratic, coefficients, held_back
from evomerge.strategies.quasi_random import QuasiRandom

TWO = (Objective("maths"), Objective("loss", "minimize"))
PLANE = GenomeSpec((Gene("a", high=2.0), Gene("b")))


class TestMap(LearningContract):
    rounds: ClassVar = 6

    @pytest.fixture
    def make(self) -> Make:
        return partial(AmortizedPareto, verify=16, popsize=16, generations=3)


def test_a_quadratic_in_a_sigmoid_is_found_again() -> None:
    """Hand-made: logits of 1 + 2u - 3v + 0.5 u^2 - 0.25 uv - v^2 with u = 2x - 1 and v = 2y - 1."""
    points = np.random.default_rng(0).random((40, 2))
    u, v = (2 * points - 1).T
    values = 1 / (1 + np.exp(-(1 + 2 * u - 3 * v + 0.5 * u**2 - 0.25 * u * v - v**2)))
    fit = Quadratic.fit(points, values)
    assert fit.link == "sigmoid"
    assert fit.weights == pytest.approx([1, 2, -3, 0.5, -0.25, -1], abs=0.02)
    assert held_back(points, values) > 0.999
    assert coefficients(2) == 6


def test_the_link_follows_from_the_values() -> None:
    points = np.random.default_rng(1).random((20, 1))
    assert Quadratic.fit(points, 3 + points[:, 0]).link == "softplus"
    assert Quadratic.fit(points, points[:, 0] - 2).link == "identity"
    loss = Quadratic.fit(points, 3 + points[:, 0])
    assert loss.predict(np.array([[0.25]])) == pytest.approx([3.25], abs=0.01)


def test_what_cannot_be_told_is_not_claimed() -> None:
    points = np.random.default_rng(2).random((12, 2))
    noise = np.random.default_rng(3).random(12)
    assert held_back(points, noise) < 0.5
    assert np.isnan(held_back(points[:6], noise[:6]))
    assert np.isnan(held_back(points, np.full(12, 0.5)))


def test_a_point_outside_of_the_samples_is_marked() -> None:
    points = 0.4 + 0.2 * np.random.default_rng(4).random((30, 2))
    fit = Quadratic.fit(points, points.sum(axis=1))
    assert fit.extrapolates(np.array([[0.5, 0.5], [0.95, 0.05]])).tolist() == [False, True]


def _score(values: tuple[float, ...]) -> dict[str, float]:
    a, b = values[0] / 2, values[1]
    return {"maths": 1 / (1 + np.exp(4 * (a - 0.8) ** 2 - 1)), "loss": 1 + (a - 0.2) ** 2 + (b - 0.5) ** 2}


def _front(strategy: AmortizedPareto | QuasiRandom, evaluations: int) -> tuple[ParetoArchive, list[tuple[float, ...]]]:
    archive, asked = ParetoArchive(TWO), []
    while len(asked) < evaluations:
        for proposal in strategy.ask(4):
            values, number = _score(proposal.genome.values), len(asked)
            archive.add(number, values)
            strategy.tell(Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives=values))
            asked.append(proposal.genome.values)
    return archive, asked


def test_its_points_lie_on_the_front() -> None:
    """The front is b = 0.5 with a from 0.2 to 0.8 of its range: what is verified lies there, and all along it."""
    archive, asked = _front(AmortizedPareto(PLANE, TWO, seed=0, verify=16, popsize=40, generations=10), 32)
    verified = np.array(asked[13:])  # the start and 12 samples came before
    assert np.abs(verified[:, 1] - 0.5).max() < 0.15
    assert verified[:, 0].min() < 0.6
    assert verified[:, 0].max() > 1.4
    reference = {"maths": 0.4, "loss": 1.5}
    plain, _ = _front(QuasiRandom(PLANE, TWO, seed=0), 32)
    assert archive.hypervolume(reference) > plain.hypervolume(reference)


def test_losses_are_searched_as_their_negatives_are() -> None:
    asked = []
    for direction, sign in (("minimize", 1.0), ("maximize", -1.0)):
        two = (Objective("near", direction), Objective("far", direction))  # type: ignore[arg-type]
        strategy = AmortizedPareto(PLANE, two, seed=0, link="identity", popsize=20)
        for number in range(12):
            (proposal,) = strategy.ask(1)
            a, b = proposal.genome.values[0] / 2, proposal.genome.values[1]
            values = {"near": sign * (a**2 + b**2), "far": sign * ((1 - a) ** 2 + b**2)}
            strategy.tell(Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives=values))
        asked.append([proposal.genome.values for proposal in strategy.ask(6)])
    np.testing.assert_array_equal(asked[0], asked[1])
    assert max(b for _, b in asked[0]) < 0.1


def test_nothing_is_proposed_outside_of_the_bounds_or_twice() -> None:
    player = Player(AmortizedPareto(PLANE, MAXIMISE, seed=1, verify=4, popsize=8, generations=2), PLANE)
    assert len(set(player.run(60, 3))) == 60


def test_fits_learn_from_what_is_injected() -> None:
    strategy, rng = AmortizedPareto(PLANE, TWO, seed=0), np.random.default_rng(0)
    assert strategy.fits() == {}
    for number in range(12):
        genome = PLANE.sample(rng)
        told = Evaluation(number, "ok", objectives=_score(genome.values))
        strategy.inject(Candidate(number, None, genome), told)
    assert set(strategy.fits()) == {"maths", "loss"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 5}, "samples is 5; at least 6"),
        ({"verify": 0}, "verify is 0"),
        ({"popsize": 3}, "popsize is 3"),
        ({"link": "sigmoit"}, "sigmoid"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        AmortizedPareto(PLANE, MAXIMISE, seed=0, **options)
    assert message in str(error.value)


def test_choices_and_too_many_genes_are_refused() -> None:
    with pytest.raises(ConfigError, match="categorical"):
        AmortizedPareto(MIXED, MAXIMISE, seed=0)
    with pytest.raises(ConfigError, match=r"61 free genes.*1,953 coefficients"):
        AmortizedPareto(GenomeSpec(tuple(Gene(f"g{i}") for i in range(61))), MAXIMISE, seed=0)
