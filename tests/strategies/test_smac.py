from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("smac", reason="needs pip install 'evomerge[smac]'")

from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.forest_search import ForestSearch, log_improvement, log_scaled
from evomerge.strategies.smac import Smac


class TestSmac(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"startup": 1, "batch": 1, "trees": 1, "candidates": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Smac, startup=6, batch=6, trees=3, candidates=50)  # a forest costs a twentieth of a second


def methods() -> GenomeSpec:
    """Two layers: a method of three, each with a number of its own."""
    genes = []
    for layer in "01":
        genes.append(Gene(f"{layer}/method", "categorical", choices=("a", "b", "c")))
        genes += [Gene(f"{layer}/{name}/weight") for name in "abc"]
    return GenomeSpec(tuple(genes))


def active(genome: Genome) -> list[str]:
    values = methods().named(genome)
    return [name for k in "01" for name in (f"{k}/method", f"{k}/{values[f'{k}/method']}/weight")]


def loss(spec: GenomeSpec, genome: Genome) -> float:
    values = spec.named(genome)
    chosen = [str(values[f"{k}/method"]) for k in "01"]
    return sum(
        (name != "b") + (float(values[f"{k}/{name}/weight"]) - 0.8) ** 2 for k, name in zip("01", chosen, strict=True)
    )


def told_of(strategy: Smac, evaluations: int = 60) -> Player:
    strategy.know_active(active)
    player = Player(strategy, methods(), loss)
    player.run(evaluations, 1)
    return player


def test_what_does_not_act_is_proposed_at_its_start() -> None:
    asked = told_of(Smac(methods(), MAXIMISE, seed=0, startup=10, candidates=200), 30).asked
    for genome in asked:
        values = methods().named(genome)
        assert all(values[gene.name] == 0.5 for gene in methods() if gene.name not in active(genome))
    assert len(set(asked)) == len(asked)


def test_choices_and_what_belongs_to_them_are_found() -> None:
    assert told_of(Smac(methods(), MAXIMISE, seed=0, startup=10, candidates=200)).best < 0.02


def test_the_forest_is_shown_missing_genes_as_such() -> None:
    search = ForestSearch(methods(), active, trees=2, candidates=10)
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0, 2.0]])  # six numbers, then the choices b and c
    assert search.marked(row).tolist() == [[-1.0, 0.2, -1.0, -1.0, -1.0, 0.6, 1.0, 2.0]]
    assert ForestSearch(methods(), None, trees=2, candidates=10).marked(row) is row


def test_a_genome_in_which_nothing_acts_is_its_own_neighbour() -> None:
    search = ForestSearch(methods(), lambda genome: (), trees=2, candidates=10)
    told = [methods().sample(np.random.default_rng(i)) for i in range(4)]
    assert search.best(told, np.array([0.1, 0.2, 0.3, 0.4]), [], 0)


def test_expected_improvement_is_that_of_samples() -> None:
    draws = np.random.default_rng(0).normal(0.3, 0.5, 400_000)
    sampled = np.maximum(np.exp(0.1) - np.exp(draws), 0).mean()
    told = np.exp(log_improvement(np.array([[0.3]]), np.array([[0.25]]), 0.1))
    assert told[0] == pytest.approx(sampled, rel=0.01)
    # nothing is left of it, and it is still told apart from worse
    assert np.exp(log_improvement(np.array([[1e3]]), np.array([[1e-12]]), 0.0))[0] == 0.0


def test_costs_are_scaled_as_by_hand() -> None:
    costs = np.array([0.0, 1.0, 2.0, 3.0, 4.0])  # the fifth percentile is 0.2: zero is at -0.2
    assert np.exp(log_scaled(costs)) == pytest.approx((costs + 0.2) / 4.2)
    assert log_scaled(np.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_several_objectives_reach_both_ends() -> None:
    two = (Objective("near"), Objective("far", "minimize"))
    spec = GenomeSpec((Gene("a"), Gene("b")))
    strategy = Smac(spec, two, seed=0, startup=8, candidates=200)
    found = []
    for number in range(50):
        (proposal,) = strategy.ask(1)
        a, b = (float(value) for value in proposal.genome.values)
        told = {"near": -((a - 0.1) ** 2) - b**2, "far": (a - 0.9) ** 2 + b**2}
        strategy.tell(Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives=told))
        found.append((told["near"], told["far"]))
    assert max(near for near, _ in found) > -0.02
    assert min(far for _, far in found) < 0.02


@pytest.mark.parametrize(
    ("key", "value"),
    [("startup", 0), ("batch", 0), ("trees", 0), ("candidates", 0), ("random", 1.5), ("random", math.nan)],
)
def test_settings_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"strategy.{key} is"):
        Smac(methods(), MAXIMISE, seed=0, **{key: value})


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.strategies.smac.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[smac\]'"):
        Smac(methods(), MAXIMISE, seed=0)
