"""Tasks scored each with a model of its own, joined to one evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.models.loaded import LoadedModel
from evomerge.session.switches import check_switches
from fitness.lm_eval_tasks import LmEvalFitness

TERMS = [{"task": "choose", "switch": "a"}, {"task": "complete", "switch": "b"}, {"task": "write", "switch": "a"}]


def fitness_of(folder: Any, terms: list[Any] = TERMS, **options: Any) -> LmEvalFitness:
    return LmEvalFitness(terms, include_path=str(folder.path), limit=5, batch_size=4, **options)


def other(model: LoadedModel) -> LoadedModel:
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("forwards", ["exact", "shared"])
def test_each_task_is_that_of_its_model_alone(tasks: Any, load: Callable[[], LoadedModel], forwards: Any) -> None:
    models, asked = {"a": load(), "b": other(load())}, []

    def switch(source: str) -> LoadedModel:
        asked.append(source)
        return models[source]

    fitness = fitness_of(tasks, forwards=forwards)
    fitness.prepare(models["a"])
    found = fitness.run_switched(switch)
    assert asked == ["a", "b"]
    assert list(found.items) == [key for name in ("choose", "complete", "write") for key in found.items if name in key]
    for source, names in (("a", ("choose", "write")), ("b", ("complete",))):
        alone = fitness_of(tasks, [{"task": name} for name in names], forwards=forwards)
        alone.prepare(models[source])
        own = alone.run(models[source])
        for key, values in own.items.items():
            np.testing.assert_array_equal(found.items[key], values)
        assert {key: found.metrics[key] for key in own.metrics} == dict(own.metrics)
        for name in names:
            assert found.responses[name] == own.responses[name]
    share = {metric.metric: metric.weight for metric in fitness.shares()}
    assert found.objectives["score"] == pytest.approx(sum(w * found.metrics[m] for m, w in share.items()))
    assert found.tokens["stock"] > 0


def test_parts_go_to_their_tasks_models(tasks: Any, load: Callable[[], LoadedModel]) -> None:
    models = {"a": load(), "b": other(load())}
    fitness = fitness_of(tasks)
    fitness.prepare(models["a"])
    whole = fitness.run_switched(models.__getitem__)
    part = fitness.run_switched(models.__getitem__, {"choose": [0, 3], "complete": [1], "write": [2, 4]})
    for key, values in part.items.items():
        places = {"choose": [0, 3], "complete": [1], "write": [2, 4]}[key.split("/")[0]]
        assert np.flatnonzero(~np.isnan(values)).tolist() == places
        np.testing.assert_allclose(values[places], whole.items[key][places], rtol=1e-5)


def test_what_is_scored_with_which_switch_is_part_of_the_fingerprint(
    tasks: Any, load: Callable[[], LoadedModel]
) -> None:
    prints = []
    for terms in (TERMS, [{**term, "switch": "a"} for term in TERMS], [{"task": term["task"]} for term in TERMS]):
        fitness = fitness_of(tasks, terms)
        fitness.prepare(load())
        prints.append(fitness.fingerprint())
    assert len(set(prints)) == 3


def test_switches_are_checked_against_those_that_there_are(tasks: Any) -> None:
    fitness = fitness_of(tasks)
    check_switches(fitness, None, ["a", "b", "c"])
    check_switches(fitness_of(tasks, ["choose"]), fitness_of(tasks, ["write"]), [])
    for fitnesses, names, message in (
        ((fitness, None), ["b", "c"], r"fitness.tasks\[0\].switch is 'a'.*b, c"),
        ((fitness, fitness_of(tasks, ["choose"])), ["a", "b"], r"held_out.tasks\[0\] \(choose\) has no switch.*a, b"),
        ((fitness, None), [], r"switch is 'a', and the models have no switch"),
        ((object(), None), ["a"], r"fitness scores a model in one piece"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_switches(*fitnesses, names)
    check_switches(object(), None, [])
