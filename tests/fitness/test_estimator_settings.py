"""`fitness.estimator`: checked early, built for what the tasks count, equal to the fitness on all items."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError, FitnessError
from evomerge.objectives import MetricShare
from evomerge.run.folder import RunFolder
from evomerge.run.items import items_bytes
from fitness.estimators.irt import ItemResponse
from fitness.estimators.settings import earlier_items, parse_estimator
from fitness.estimators.stratified_mean import StratifiedMean
from fitness.lm_eval_tasks import LmEvalFitness

TASKS: list[str | dict[str, Any]] = [
    {"task": "choose", "metrics": {"acc": 0.5, "brier_score": {"weight": 0.2, "transform": "log"}}, "weight": 2},
    {"task": "complete", "metrics": {"acc": 1.0, "perplexity": {"weight": 0.05, "transform": "log"}}},
    {"task": "write", "objective": "answers"},
]

SIZED: list[str | dict[str, Any]] = [{"task": "sized", "metrics": "acc"}, {"task": "write", "objective": "answers"}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gpirt", "estimator is 'gpirt'; did you mean 'gp_irt'?"),
        ({"name": "p-irt"}, "estimator.name is 'p-irt'; did you mean 'p_irt'?"),
        ({"anchors": "none"}, "estimator has no name; name: mean, p_irt, gp_irt, mp_irt, gmp_irt"),
        ({"nam": "gp_irt"}, "estimator has no key 'nam'; did you mean 'name'?"),
        ({"name": "p_irt", "anchor": "none"}, "estimator has no key 'anchor' with name p_irt; did you mean 'anchors'?"),
        (
            {"name": "mean", "anchors": "entropy"},
            "estimator has no key 'anchors' with name mean; mean has no arguments",
        ),
        ({"name": "p_irt", "blend": 0.5}, "blend is an argument of gp_irt, gmp_irt"),
        ({"name": "gp_irt", "blend": 2}, "estimator.blend is 2; variances, or the share of the mean, from 0 to 1"),
        ({"name": "gp_irt", "blend": True}, "estimator.blend is True"),
        ({"name": "p_irt", "dimensions": 0}, "estimator.dimensions is 0; a whole number from 1 to 16"),
        ({"name": "mp_irt", "endpoints": 1}, "estimator.endpoints is 1; a whole number from 2 to 16"),
        ({"name": "p_irt", "anchors": "cluster"}, "estimator.anchors is 'cluster'; did you mean 'clusters'?"),
        ({"name": "p_irt", "from_run": 3}, "estimator.from_run is 3; a run folder, or a list of them"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        LmEvalFitness(["x"], estimator=given)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    fitness = LmEvalFitness(["x"], estimator={"name": "p_irt", "from_run": str(tmp_path)})
    with pytest.raises(FitnessError, match=r"estimator.from_run is .*no run folder"):
        fitness.check_files()


def test_nothing_is_the_mean() -> None:
    assert parse_estimator(None) == parse_estimator("mean") == parse_estimator({"name": "mean"})
    assert parse_estimator("gp_irt").arguments == {"blend": "variances"}


def built(tasks: Any, names: list[Any], **config: Any) -> tuple[LmEvalFitness, Any]:
    fitness = LmEvalFitness(names, include_path=str(tasks.path), **config)
    return fitness, fitness.build_estimator()


@pytest.mark.parametrize("name", ["mean", "gp_irt"])
@pytest.mark.parametrize("terms", [TASKS, SIZED])
def test_all_items_are_the_fitness_itself_and_some_are_near(model: Any, tasks: Any, name: str, terms: Any) -> None:
    (tasks.path / "sized.yaml").write_text(
        "group: sized\ntask: [choose, complete]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    fitness, estimator = built(tasks, terms, estimator=name, response_length=True)
    fitness.prepare(model)
    scores = fitness.run(model)
    estimator.fit([scores.items, scores.items])
    found = estimator.estimate(scores.items)
    assert list(found) == [objective.name for objective in fitness.objectives]
    for objective, value in scores.objectives.items():
        assert found[objective].value == pytest.approx(value, rel=1e-12)
        assert found[objective].error == 0.0
    some = fitness.run(model, {task: range(0, count, 3) for task, count in fitness.items().items()})
    told = estimator.estimate(some.items)
    assert all(each.error > 0 for each in told.values())
    if name == "mean" and terms is TASKS:  # of a group that goes by size, those of the part are other sizes
        assert {objective: each.value for objective, each in told.items()} == pytest.approx(some.objectives)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (
            {"task": "read", "metrics": "word_perplexity"},
            r"read/word_perplexity cannot .* its aggregation is weighted_perplexity",
        ),
        ({"task": "read", "metrics": {"bits_per_byte": {"transform": "log"}}}, r"read/bits_per_byte .* bits_per_byte"),
        (
            {"task": "complete", "metrics": "perplexity"},
            r"complete/perplexity .*perplexity; .*set transform: log for it",
        ),
    ],
)
def test_what_is_no_mean_of_items_is_refused_by_name(tasks: Any, term: Any, said: str) -> None:
    with pytest.raises(FitnessError, match=said):
        built(tasks, [term])


def test_f1_of_items_is_no_mean(tasks: Any) -> None:
    metric = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    rows = [{"q": "w1", "c": ["w2", "w3"], "gold": 0}] * 4
    choose = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}"}
    tasks.write("judge", rows, {**choose, "doc_to_target": "{{gold}}", "metric_list": metric})
    with pytest.raises(
        FitnessError, match=r"judge/f1 cannot be estimated from some items: its aggregation is f1_score"
    ):
        built(tasks, ["judge"])


def test_earlier_runs_must_have_scored_the_same_items(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.items.mkdir()
    shares, counts = [MetricShare("a/acc", 1.0)], {"a": 3}
    with pytest.raises(FitnessError, match="has no scored models"):
        earlier_items(str(tmp_path), shares, counts)
    for number in (10, 2):
        values = np.array([1.0, 0.0, math.nan if number == 2 else 1.0])
        folder.items_file(number, "search").write_bytes(items_bytes({"a/acc": values}))
    found = earlier_items(str(tmp_path), shares, counts)
    assert [np.isnan(each["a/acc"]).sum() for each in found] == [1, 0]
    with pytest.raises(FitnessError, match="scored 3 items of a/acc; the same items as this search, which has 4"):
        earlier_items(str(tmp_path), shares, {"a": 4})
    with pytest.raises(FitnessError, match=r"candidate 2 of .* has no a/exact"):
        earlier_items(str(tmp_path), [MetricShare("a/exact", 1.0)], counts)


def test_the_class_of_each_name(tasks: Any) -> None:
    assert isinstance(built(tasks, ["choose"])[1], StratifiedMean)
    for name in ("p_irt", "gp_irt", "mp_irt", "gmp_irt"):
        assert isinstance(built(tasks, ["choose"], estimator={"name": name, "dimensions": 2})[1], ItemResponse)
