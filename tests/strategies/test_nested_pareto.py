from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, Make, pack, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.merge_tree import Node, models_of, range_of
from evomerge.strategies.nested_pareto import NestedPareto

FOUR = ("a", "b", "c", "d")
TASKS = tuple(Objective(f"on_{name}") for name in FOUR)
SPEC = GenomeSpec(tuple(Gene(f"{part}/{name}/weight") for part in ("attn", "mlp") for name in FOUR))
BEST = {"a": 0.8, "b": 0.6, "c": 0.5, "d": 0.9}
SMALL: dict[str, Any] = {"samples": 8, "verify": 4, "popsize": 8, "generations": 3}


def each_a_model(spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int) -> NestedPareto:
    """Every gene a model of its own."""
    models = {gene.name: [gene.name] for gene in spec if gene.low < gene.high}
    return NestedPareto(spec, objectives, seed=seed, models=models, popsize=8, generations=2)


class TestNestedMap(LearningContract):
    rounds: ClassVar = 6

    @pytest.fixture
    def make(self) -> Make:
        return each_a_model


def scores(values: Sequence[float]) -> dict[str, float]:
    """Each task wants its model's genes at one scaling, and little of the others; alone 0.90, 0.89, 0.60, 0.58."""
    alone = dict(zip(FOUR, (0.90, 0.89, 0.60, 0.58), strict=True))
    found = {}
    for k, name in enumerate(FOUR):
        own = np.array([values[k], values[k + 4]])
        missed = float(np.mean((own - BEST[name]) ** 2)) - (1 - BEST[name]) ** 2
        found[f"on_{name}"] = alone[name] - missed - 0.01 * (sum(values) - own.sum())
    return found


def search(strategy: NestedPareto, evaluations: int, portion: int | None = None) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    while len(found) < evaluations:
        for proposal in strategy.ask(portion):
            told = Evaluation(len(found), "ok", objectives=scores(proposal.genome.values))
            strategy.tell(Candidate(len(found), None, proposal.genome), told)
            found.append(proposal.genome.values)
    return found


def test_models_alone_then_the_nearest_two_then_the_others_then_both_merges() -> None:
    strategy = NestedPareto(SPEC, TASKS, seed=0, **SMALL)
    asked = np.array(search(strategy, 4 + 3 * 12 + 4, 1))
    assert (asked[:, :4] == asked[:, 4:]).all(), "all genes of a model are scaled together"
    assert asked[:4, :4].tolist() == np.eye(4).tolist()
    pairs = [set(np.flatnonzero(asked[begin : begin + 12, :4].max(axis=0))) for begin in (4, 16, 28)]
    assert pairs == [{0, 1}, {2, 3}, {0, 1, 2, 3}]
    assert asked[4, :4].tolist() == [1, 1, 0, 0], "a pair begins with the plain sum"


def test_it_finds_what_each_task_wants() -> None:
    """The sum of the tasks is highest where each model's scaling is BEST less 0.015."""
    strategy = NestedPareto(SPEC, TASKS, seed=0, samples=12, verify=8)
    found = search(strategy, 4 + 3 * 20)
    best = max(found, key=lambda values: sum(scores(values).values()))
    assert best[:4] == pytest.approx([BEST[name] - 0.015 for name in FOUR], abs=0.2)


def test_a_preference_decides_what_a_pair_becomes() -> None:
    """Of two tasks that want opposite scalings of one another the one that counts gets its own."""
    plane = GenomeSpec((Gene("all/a/weight"), Gene("all/b/weight"), Gene("all/c/weight")))
    tasks = TASKS[:3]
    kept = {}
    for name in "ab":
        given = {"on_a": 0.02, "on_b": 0.02, "on_c": 0.02, f"on_{name}": 0.96}
        strategy = NestedPareto(plane, tasks, seed=0, preference=given, samples=12, verify=8)
        told = 0
        while told < 3 + 20:
            for proposal in strategy.ask():
                a, b, c = proposal.genome.values
                values = {"on_a": 0.5 + 0.4 * a - 0.3 * b, "on_b": 0.5 + 0.4 * b - 0.3 * a, "on_c": 0.1 + 0.1 * c}
                strategy.tell(Candidate(told, None, proposal.genome), Evaluation(told, "ok", objectives=values))
                told += 1
        merged = strategy.state_dict()["nodes"][-1]
        assert merged["merged"]
        kept[name] = merged["values"][:2].tolist()
    assert kept["a"][0] > 0.7 > 0.3 > kept["a"][1]
    assert kept["b"][1] > 0.7 > 0.3 > kept["b"][0]


def test_objectives_may_be_given_by_model() -> None:
    tasks = {"d": ["on_a", "on_b"], "a": ["on_c"], "b": ["on_d"], "c": []}
    strategy = NestedPareto(SPEC, TASKS, seed=0, tasks=tasks, **SMALL)
    search(strategy, 4)
    assert [node["tasks"] for node in strategy.state_dict()["nodes"]] == [[2], [3], [], [0, 1]]


def test_a_merge_may_be_scaled_within_bounds_and_twice_at_most() -> None:
    spec = GenomeSpec((Gene("all/a/weight", low=-1.5, high=1.5), Gene("all/b/weight", low=0.0, high=0.5)))
    assert range_of(spec, Node.alone(spec, [0])) == (-1.5, 1.5)
    assert Node.alone(spec, [1]).values.tolist() == [0.0, 0.5]
    assert range_of(spec, Node.alone(spec, [1])) == (0.0, 1.0)
    assert range_of(spec, Node(np.array([-0.5, 0.4]), merged=True)) == (0.0, 1.25)
    assert range_of(spec, Node(np.array([0.01, 0.0]), merged=True)) == (-2.0, 2.0)
    assert range_of(spec, Node(np.zeros(2), merged=True)) == (0.0, 1.0)


@pytest.mark.parametrize("after", [2, 9, 14, 16, 17, 30, 44])
def test_it_goes_on_from_a_state_taken_anywhere(after: int) -> None:
    first, second = (NestedPareto(SPEC, TASKS, seed=seed, **SMALL) for seed in (3, 4))
    search(first, after, 1)
    second.load_state_dict(unpack(pack(first.state_dict())))
    assert search(second, 50, 1) == search(first, 50, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 5}, "strategy.samples is 5; at least 6"),
        ({"verify": 0}, "strategy.verify is 0"),
        ({"popsize": 3}, "popsize is 3"),
        ({"link": "sigmoit"}, "sigmoid"),
        ({"preference": {"on_e": 1}}, r"strategy.preference has 'on_e'.*on_a"),
        ({"models": {}}, "strategy.models is {}"),
        ({"models": {"a": ["*/a/*"]}}, "gene 'attn/b/weight' is no model's"),
        ({"models": {"a": ["*"], "b": ["*/b/*"]}}, "gene 'attn/b/weight' is two models'"),
        ({"models": {"a": ["*/e/*"]}}, r"strategy.models.a has '\*/e/\*', which no gene is called"),
        ({"models": {"a": "*"}}, "strategy.models.a is '\\*'; a list"),
        ({"tasks": {"e": ["on_a"]}}, "strategy.tasks has 'e'"),
        ({"tasks": {"a": ["on_e"]}}, "strategy.tasks.a has 'on_e'"),
        ({"tasks": {"a": "on_a"}}, "strategy.tasks.a is 'on_a'; a list"),
        ({"tasks": {"a": ["on_a"]}}, "objective 'on_b' as no model's"),
        ({"tasks": ["on_a"]}, "strategy.tasks is \\['on_a'\\]"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NestedPareto(SPEC, TASKS, seed=0, **options)


def test_genes_that_are_no_scaling_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gene 'all/a/density' is no model's.*strategy\.models"):
        NestedPareto(GenomeSpec((Gene("all/a/weight"), Gene("all/a/density"))), MAXIMISE, seed=0)
    with pytest.raises(ConfigError, match=r"bounds \[0.2, 1\]; 0 must be within"):
        NestedPareto(GenomeSpec((Gene("all/a/weight", low=0.2),)), MAXIMISE, seed=0)
    assert models_of(CONTINUOUS, None) == {"a": [0, 1, 2, 4]}
    many = GenomeSpec(tuple(Gene(f"all/m{i}/weight") for i in range(61)))
    with pytest.raises(ConfigError, match="61 models; at most 60"):
        NestedPareto(many, MAXIMISE, seed=0)
