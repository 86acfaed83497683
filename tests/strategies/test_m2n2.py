from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from contracts.other_process import elsewhere
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player, outcome, pack, play, sphere, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.arrays import ArrayGenome, ArraySpec
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.genomes.lineages import LineageGenome, LineageSpec
from evomerge.objectives import Objective
from evomerge.strategies.m2n2 import M2N2
from evomerge.strategies.random_search import RandomSearch

LINEAGE = LineageSpec(("math", "lang", "code"), ("attn", "rest"))
WEIGHTS = ArraySpec([f"w{i}" for i in range(40)], 2.0)


class TestM2N2(StrategyContract):
    smallest: ClassVar = {"size": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(M2N2, size=6)


class TestMixedM2N2(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"size": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(M2N2, size=5, batch=3, path="linear", chromosomes=[["*t*"]], warmup=4)


class TestLineageM2N2(StrategyContract):
    spec = LINEAGE
    smallest: ClassVar = {"size": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(M2N2, size=5)


def told(strategy: M2N2, rows: dict[str, list[float]]) -> None:
    """Tell the seeds of a lineage their scores by item."""
    for number, proposal in enumerate(strategy.ask()):
        items = {"toy/acc": np.array(rows[str(proposal.genome.values[0])], dtype=float)}
        strategy.tell(
            Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives={"score": 0.0}, items=items)
        )


def test_a_lineage_begins_with_its_seeds_and_children_name_their_parents() -> None:
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0, size=5)
    assert [proposal.genome.values for proposal in strategy.ask()] == [("math",), ("lang",), ("code",)]
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0, size=5)
    told(strategy, {"math": [1, 1, 0], "lang": [1, 0, 0], "code": [0, 0, 1]})
    for proposal in strategy.ask(40):
        assert isinstance(proposal.genome, LineageGenome)
        names = [parent.values[0] for parent in proposal.genome.parents]
        assert [LINEAGE.seeds[i] for i in proposal.parents] == names
        assert names not in (["math", "lang"],)  # lang knows nothing that math does not
    fittest = [member.candidate for member in strategy.population]
    assert fittest == [0, 2, 1]
    assert [member.fitness for member in strategy.population] == pytest.approx([1.5, 1.0, 0.5], rel=1e-5)


def test_without_attraction_or_split() -> None:
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0, attraction="off", split=False)
    told(strategy, {"math": [1, 1, 0], "lang": [1, 0, 0], "code": [0, 0, 1]})
    children = strategy.ask(60)
    assert {proposal.parents for proposal in children} == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert all(proposal.genome.values[1::2] == (1.0, 1.0) for proposal in children)


def test_warm_up_mates_at_random() -> None:
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0, warmup=200)
    told(strategy, {"math": [1, 1], "lang": [0, 0], "code": [0, 0]})
    pairs = [proposal.parents for proposal in strategy.ask(200)]
    assert len(set(pairs)) == 6
    assert all(proposal.parents[0] == 0 for proposal in strategy.ask(20))


def test_children_are_asked_before_anything_is_told() -> None:
    for spec in (LINEAGE, CONTINUOUS, WEIGHTS):
        strategy = M2N2(spec, MAXIMISE, seed=0, size=4)
        genomes = [proposal.genome for proposal in strategy.ask(30)]
        assert len(genomes) == 30
        for genome in genomes:
            spec.check(genome)
        assert len(set(genomes)) == 30


def test_failed_seeds_are_no_parents() -> None:
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0)
    for number, proposal in enumerate(strategy.ask()):
        failed = Evaluation(number, "failed", error="out of memory")
        good = Evaluation(number, "ok", objectives={"score": 1.0}, items={"toy/acc": np.ones(2)})
        strategy.tell(Candidate(number, None, proposal.genome), good if number == 1 else failed)
    assert [member.candidate for member in strategy.population] == [1]
    for proposal in strategy.ask(20):  # alone, it takes another seed for a mate
        assert isinstance(proposal.genome, LineageGenome)
        first, second = (parent.values[0] for parent in proposal.genome.parents)
        assert first == "lang"
        assert second in ("math", "code")


def test_a_population_of_one() -> None:
    for spec in (CONTINUOUS, MIXED, LINEAGE):
        player = Player(M2N2(spec, MAXIMISE, seed=0, size=1), spec)
        player.run(60)
        assert len(player.strategy.population) == 1
        assert len(set(player.asked)) > 30


def test_better_than_random_by_objectives_where_there_are_no_items() -> None:
    spec = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=3.0) for i in range(6)))

    def without_items(candidate: Candidate) -> Evaluation:
        assert candidate.genome is not None
        return Evaluation(candidate.id, "ok", objectives={"score": -sphere(spec, candidate.genome)})

    def regret(make: Any) -> float:
        best = []
        for seed in range(6):
            player = Player(make(spec, MAXIMISE, seed=seed), spec)
            while len(player.asked) < 200:
                player.ask()
                player.tell(make=without_items)
            best.append(np.log10(player.best))
        return float(np.mean(best))

    assert regret(M2N2) < regret(RandomSearch) - np.log10(2)


def test_items_of_several_tasks_and_their_directions() -> None:
    strategy = M2N2(CONTINUOUS, MAXIMISE, seed=0, size=4)
    items = {"b/acc": np.array([1.0, 0.0]), "a/acc": np.array([0.5]), "a/perplexity": np.array([3.0, 4.0])}
    strategy.tell(_asked(strategy, 0), Evaluation(0, "ok", objectives={"score": 0.0}, items=items))
    np.testing.assert_array_equal(strategy.state_dict()["population"]["scores"], [[0.5, 1.0, 0.0]])
    with pytest.raises(FitnessError, match="none items of 'b/acc'"):
        strategy.tell(
            _asked(strategy, 1), Evaluation(1, "ok", objectives={"score": 0.0}, items={"a/acc": items["a/acc"]})
        )
    lower = M2N2(CONTINUOUS, MAXIMISE, seed=0, items=["*/perplexity", "b/*"])
    lower.tell(_asked(lower, 0), Evaluation(0, "ok", objectives={"score": 0.0}, items=items))
    np.testing.assert_array_equal(lower.state_dict()["population"]["scores"], [[-3.0, -4.0, 1.0, 0.0]])
    none = M2N2(CONTINUOUS, MAXIMISE, seed=0, items=["c/*"])
    with pytest.raises(FitnessError, match=r"strategy.items has 'c/\*'"):
        none.tell(_asked(none, 0), Evaluation(0, "ok", objectives={"score": 0.0}, items=items))


def _asked(strategy: M2N2, number: int) -> Candidate:
    return Candidate(number, None, strategy.ask(1)[0].genome)


def test_objectives_are_items_where_there_are_none() -> None:
    objectives = (Objective("score"), Objective("length", "minimize"))
    strategy = M2N2(CONTINUOUS, objectives, seed=0)
    strategy.tell(_asked(strategy, 0), Evaluation(0, "ok", objectives={"score": 0.5, "length": 7.0}))
    np.testing.assert_array_equal(strategy.state_dict()["population"]["scores"], [[0.5, -7.0]])
    strategy.tell(_asked(strategy, 1), Evaluation(1, "ok", objectives={"score": 0.5, "length": float("nan")}))
    assert len(strategy.population) == 1


def test_candidates_of_others_can_be_taken_in() -> None:
    strategy = M2N2(LINEAGE, MAXIMISE, seed=0)
    told(strategy, {"math": [1, 0], "lang": [0, 0], "code": [0, 0]})
    migrant = LINEAGE.sample(np.random.default_rng(0))
    strategy.tell(Candidate(90, None, migrant), outcome(90, 0.5))
    assert len(strategy.population) == 3
    good = Evaluation(91, "ok", objectives={"score": 1.0}, items={"toy/acc": np.ones(2)})
    strategy.inject(Candidate(91, None, migrant), good)
    strategy.inject(Candidate(92, None, None), good)
    assert strategy.population[0].candidate == 91
    assert len(strategy.population) == 4


def test_raw_weights_from_seeds_and_from_scratch() -> None:
    scratch = [proposal.genome for proposal in M2N2(WEIGHTS, MAXIMISE, seed=0).ask()]
    values = np.array([genome.array for genome in scratch if isinstance(genome, ArrayGenome)])
    assert values.shape == (20, 40)
    assert abs(values.std() / 0.01 - 1) < 0.1  # the public code's N(0, 0.01^2)
    seeds = ArraySpec([f"w{i}" for i in range(40)], 2.0, seeds=[np.eye(40)[0], np.eye(40)[1]])
    strategy = M2N2(seeds, MAXIMISE, seed=0, path="linear")
    for number, proposal in enumerate(strategy.ask()):
        strategy.tell(Candidate(number, None, proposal.genome), outcome(number, 0.5))
    child = strategy.ask(1)[0].genome
    assert isinstance(child, ArrayGenome)
    assert (child.array[2:] == 0).all()  # nothing is mutated
    state = pack(strategy.state_dict())
    other = M2N2(seeds, MAXIMISE, seed=5, path="linear")
    other.load_state_dict(unpack(state))
    assert [p.genome for p in other.ask(5)] == [p.genome for p in strategy.ask(5)]


@pytest.mark.parametrize(
    ("spec", "options", "key"),
    [
        (CONTINUOUS, {"size": 0}, "strategy.size"),
        (CONTINUOUS, {"batch": 0}, "strategy.batch"),
        (CONTINUOUS, {"warmup": -1}, "strategy.warmup"),
        (CONTINUOUS, {"path": "arc"}, "strategy.path"),
        (CONTINUOUS, {"mutation": -0.1}, "strategy.mutation"),
        (CONTINUOUS, {"crossover": False, "mutation": 0.0}, "strategy.crossover"),
        (CONTINUOUS, {"chromosomes": [["*.attn/*"]]}, "strategy.chromosomes"),
        (LINEAGE, {"mutation": 0.1}, "strategy.mutation"),
        (LINEAGE, {"crossover": False}, "strategy.crossover"),
        (LINEAGE, {"chromosomes": [["*"]]}, "search_space.chromosomes"),
        (CONTINUOUS, {"seed": -1}, "search.seed"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(spec: GenomeSpec, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        M2N2(spec, MAXIMISE, **{"seed": 0, **options})
    state = M2N2(LINEAGE, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="alpha"):
        M2N2(LINEAGE, MAXIMISE, seed=0, alpha=0.5).load_state_dict(state)


def test_alpha_zero_without_attraction_is_a_genetic_algorithm_in_another_process_too() -> None:
    ga = partial(M2N2, size=5, alpha=0.0, attraction="off", crossover=False, mutation=0.2)
    assert elsewhere(play, ga, 3, 30) == play(ga, 3, 30)
