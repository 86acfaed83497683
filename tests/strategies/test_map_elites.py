from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.arrays import ArrayGenome, ArraySpec
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.map_elites import MapElites


class TestMapElites(LearningContract):
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, cells=5, initial=10, sigma=0.05, descriptors=["genes:*"])


class TestTessellatedMapElitesOnMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, archive="cvt", cells=20, emitter="gaussian", initial=6)


class TestMapElitesWithCrossover(LearningContract):
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, cells=5, initial=10, sigma=0.05, emitter="crossover", descriptors=["genes:*"])


class TestMapElitesWithCrossoverOfMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, cells=5, emitter="crossover", initial=6)


PLANE = GenomeSpec((Gene("a", low=0, high=10), Gene("b", low=0, high=10)))
TASKS = ["lang/acc", "math/acc"]


def told(strategy: MapElites, value: float, *measures: float) -> int:
    """Tell one proposal with this score (larger is better) and these metrics; its id."""
    told.count += 1
    genome = strategy.ask(1)[0].genome
    evaluation = scored(told.count, -value, metrics=dict(zip(TASKS, measures, strict=False)))
    strategy.tell(Candidate(told.count, None, genome), evaluation)
    return told.count


told.count = 0


def by_cell(strategy: MapElites) -> dict[tuple[float, ...], float]:
    return {elite.descriptors: elite.gain for elite in strategy.elites()}


def test_the_best_of_every_cell_stays() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=TASKS, cells=2)
    told(strategy, 1.0, 0.1, 0.2)
    told(strategy, 3.0, 0.3, 0.4)
    told(strategy, 2.0, 0.3, 0.4)
    first = told(strategy, 0.5, 0.9, 0.1)
    told(strategy, 0.5, 0.8, 0.1)  # as good: the first stays
    assert by_cell(strategy) == {(0.3, 0.4): 3.0, (0.9, 0.1): 0.5}
    assert strategy.elites()[1].candidate == first


def test_the_ends_of_a_range_belong_to_the_outermost_cells() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=TASKS, cells=10)
    told(strategy, 1.0, 1.0, 1.0)
    told(strategy, 2.0, 0.95, 0.95)  # the same cell as accuracy 1
    told(strategy, 1.0, 0.0, -3.0)
    told(strategy, 2.0, 0.05, 0.0)
    told(strategy, 3.0, 1e300, float("inf"))
    assert by_cell(strategy) == {(1.0, 1.0): 3.0, (0.05, 0.0): 2.0}


def test_what_is_no_number_is_not_told() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=TASKS)
    told(strategy, 1.0, float("nan"), 0.5)
    told(strategy, float("nan"), 0.5, 0.5)
    told(strategy, float("inf"), 0.5, 0.5)
    assert strategy.elites() == []
    assert len({proposal.genome for proposal in strategy.ask(30)}) == 30  # random while there are none


def test_the_other_objectives_are_the_descriptors() -> None:
    objectives = (Objective("accuracy"), Objective("length", "minimize"))
    strategy = MapElites(PLANE, objectives, seed=0, ranges=[[0, 1000]], cells=4)
    for i, (accuracy, length) in enumerate([(0.5, 100.0), (0.6, 120.0), (0.4, 900.0)]):
        genome = strategy.ask(1)[0].genome
        values = {"accuracy": accuracy, "length": length}
        strategy.tell(Candidate(i, None, genome), Evaluation(i, "ok", objectives=values))
    assert by_cell(strategy) == {(120.0,): 0.6, (900.0,): 0.4}


def test_a_quality_to_minimise() -> None:
    objectives = (Objective("accuracy"), Objective("length", "minimize"))
    strategy = MapElites(PLANE, objectives, seed=0, objective="length", descriptors=["accuracy"], cells=1)
    for i, length in enumerate([7.0, 5.0, 9.0]):
        genome = strategy.ask(1)[0].genome
        strategy.tell(Candidate(i, None, genome), Evaluation(i, "ok", objectives={"accuracy": 1.0, "length": length}))
    assert [(elite.candidate, elite.gain) for elite in strategy.elites()] == [(1, -5.0)]


def test_means_of_genes_are_descriptors() -> None:
    strategy = MapElites(MIXED, MAXIMISE, seed=0, descriptors=["genes:*/weight", "genes:*rescale"], cells=[4, 2])
    player = Player(strategy, MIXED)
    player.run(60, 10)
    for elite in strategy.elites():
        named = MIXED.named(elite.genome)
        weights = [named["embed/a/weight"], named["layers.0/a/weight"], named["head/a/weight"]]
        assert elite.descriptors == pytest.approx((np.mean(weights), float(named["layers.0/rescale"])))
    assert strategy._descriptors.ranges == [(-2 / 3, 4 / 3), (0.0, 1.0)]


def test_sources_are_the_descriptors_where_none_is_given() -> None:
    spec = GenomeSpec(tuple(Gene(f"layers.{i}/{name}/weight") for i in range(2) for name in ("math", "lang", "code")))
    strategy = MapElites(spec, MAXIMISE, seed=0)
    assert strategy._descriptors.names == ["genes:*/math/weight", "genes:*/lang/weight"]
    assert MapElites(PLANE, MAXIMISE, seed=0)._descriptors.names == ["genes:*"]


def test_a_line_of_kinds_is_filled() -> None:
    """Every cell of a mean of genes is reached, and holds nearly the best there is."""
    spec = GenomeSpec(tuple(Gene(f"g{i}") for i in range(4)))
    strategy = MapElites(spec, MAXIMISE, seed=0, descriptors=["genes:*"], cells=8, sigma=0.05)
    Player(strategy, spec, lambda _, g: float(np.var(g.values))).run(600, 20)
    assert len(strategy.elites()) == 8
    assert min(elite.gain for elite in strategy.elites()) > -0.005


def test_parents_are_the_elites_it_varied() -> None:
    player = Player(MapElites(PLANE, MAXIMISE, seed=0, initial=10, sigma=0.0, line_sigma=0.0), PLANE)
    player.run(10, 10)
    for proposal in player.ask(30):
        first, *_ = proposal.parents
        assert proposal.genome.values == pytest.approx(player.asked[first].values, abs=1e-12)


def test_choices_are_drawn_anew() -> None:
    spec = GenomeSpec(tuple(Gene(f"m{i}", "categorical", choices=tuple("abcd")) for i in range(5)))
    strategy = MapElites(spec, MAXIMISE, seed=0, descriptors=["length/acc"], initial=3)
    player = Player(strategy, spec, lambda _, g: float(sum(v != "d" for v in g.values)))
    while len(player.asked) < 300:
        player.ask(5)
        player.tell(make=lambda c: scored(c.id, player.score(spec, c.genome), metrics={"length/acc": c.id % 7 / 7}))
    assert player.best == 0


def test_candidates_from_elsewhere_are_offered_when_injected() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=TASKS)
    metrics = dict.fromkeys(TASKS, 0.5)
    migrant = Candidate(7, None, PLANE.genome((1.0, 2.0)))
    strategy.inject(Candidate(8, None, None, name="base"), scored(8, -9.0, metrics=metrics))
    strategy.inject(migrant, Evaluation(7, "failed", error="x"))
    strategy.inject(migrant, scored(7, -1.0, metrics=metrics))
    (elite,) = strategy.elites()
    assert (elite.candidate, elite.gain, elite.descriptors) == (7, 1.0, (0.5, 0.5))
    assert elite.genome.values == pytest.approx((1.0, 2.0))


def test_raw_weights() -> None:
    """As many genes as the network of the digits, around seeds."""
    seeds = [np.full(3000, value, np.float32) for value in (0.5, -0.5)]
    spec = ArraySpec([f"w{i}" for i in range(3000)], 4.0, seeds=seeds)
    strategy = MapElites(
        spec, MAXIMISE, seed=0, descriptors=TASKS, emitter="gaussian", sigma=0.01 / 8, spread=0.0, initial=3
    )
    first = [proposal.genome for proposal in strategy.ask(3)]
    assert [float(np.mean(genome.array)) for genome in first] == [0.0, 0.5, -0.5]
    metrics = dict.fromkeys(TASKS, 0.5)
    strategy.tell(Candidate(0, None, first[1]), scored(0, 0.0, metrics=metrics))
    child = strategy.ask(1)[0].genome
    assert isinstance(child, ArrayGenome)
    assert np.std(child.array - first[1].array) == pytest.approx(0.01, rel=0.05)
    state = strategy.state_dict()
    other = MapElites(
        spec, MAXIMISE, seed=1, descriptors=TASKS, emitter="gaussian", sigma=0.01 / 8, spread=0.0, initial=3
    )
    other.load_state_dict(state)
    assert other.ask(2) == strategy.ask(2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cells": [5, 5]}, r"strategy.cells is \[5, 5\]; one number for each of 1 descriptors"),
        ({"cells": 0}, "strategy.cells is 0"),
        ({"archive": "cvt", "cells": [3, 3]}, r"strategy.cells is \[3, 3\]; one number"),
        ({"archive": "tree"}, "strategy.archive is 'tree'"),
        ({"emitter": "line"}, "strategy.emitter is 'line'"),
        ({"emitter": "crossover", "angle": "half"}, "strategy.angle is 'half'"),
        ({"sigma": float("nan")}, "strategy.sigma is nan"),
        ({"initial": -1}, "strategy.initial is -1"),
        ({"objective": "scor"}, "strategy.objective is 'scor'; did you mean 'score'"),
        ({"descriptors": ["genes:*/wieght"]}, r"descriptor 'genes:\*/wieght' matches no gene"),
        ({"descriptors": []}, r"strategy.descriptors is \[\]"),
        ({"descriptors": ["a/acc", "a/acc"]}, "each once"),
        ({"descriptors": ["a/acc"], "ranges": [[1, 0]]}, r"the range of descriptor 'a/acc' is \[1, 0\]"),
        ({"descriptors": ["a/acc"], "ranges": []}, "strategy.ranges has 0 entries"),
        ({"spec": MIXED, "descriptors": ["genes:*method"]}, "'embed/method', which is categorical"),
        ({"objectives": ()}, "MAP-Elites was given 0 objectives"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapElites(**{"spec": PLANE, "objectives": MAXIMISE, "seed": 0, **given})


def test_a_missing_metric_is_an_error() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=["lang/acc"])
    genome = strategy.ask(1)[0].genome
    evaluation = dataclasses.replace(scored(5, 0.5), metrics={"lang/acc_norm": 0.5})
    with pytest.raises(FitnessError, match="no descriptor 'lang/acc'; did you mean 'lang/acc_norm'"):
        strategy.tell(Candidate(5, None, genome), evaluation)


def test_a_state_of_other_settings_is_refused() -> None:
    state = MapElites(PLANE, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="cells"):
        MapElites(PLANE, MAXIMISE, seed=0, cells=5).load_state_dict(state)


def test_children_of_a_crossover_lie_between_their_parents() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=TASKS, emitter="crossover", sigma=0.0, initial=2)
    ids = {told(strategy, 1.0, 0.1, 0.1), told(strategy, 2.0, 0.9, 0.9)}
    ends = np.array([elite.genome.values for elite in strategy.elites()])
    for proposal in strategy.ask(50):
        assert set(proposal.parents) <= ids
        if len(proposal.parents) == 1:  # both parents are the same elite
            np.testing.assert_allclose(np.abs(ends - proposal.genome.values).max(axis=1).min(), 0, atol=1e-12)
    children = np.array([p.genome.values for p in strategy.ask(50) if len(p.parents) == 2])
    lengths = np.linalg.norm(children, axis=1)
    assert len(children) > 10
    assert (lengths <= np.linalg.norm(ends, axis=1).max() * 1.5).all()
    assert len(np.unique(children, axis=0)) == len(children)


def test_the_elite_of_a_genomes_cell_is_to_be_beaten() -> None:
    spec = GenomeSpec((Gene("a"), Gene("b")))
    strategy = MapElites(spec, MAXIMISE, seed=0, cells=4, descriptors=["genes:a"])
    for number, (a, score) in enumerate([(0.1, -1.0), (0.2, -3.0), (0.9, -2.0)]):
        candidate = Candidate(number, None, spec.genome((a, 0.5)))
        strategy.inject(candidate, Evaluation(number, "ok", objectives={"score": score}))
    beaten = [strategy.to_beat(Candidate(9, None, spec.genome((a, 0.0)))) for a in (0.0, 0.24, 0.3, 1.0)]
    assert beaten == [0, 0, None, 2]
    by_score = MapElites(spec, MAXIMISE, seed=0, cells=4, descriptors=["task/acc"])
    assert by_score.to_beat(Candidate(9, None, spec.genome((0.0, 0.0)))) is None
