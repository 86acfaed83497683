"""What the mean of each metric's items counts in the objectives: what estimates from some items are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from lm_eval.api import metrics as stock

from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.objective import Weighed, WeighedTerm, group_metrics, total_weights
from fitness._lm_eval.response_length import generates
from fitness._lm_eval.terms import RESPONSE_LENGTH


def item_shares(
    tasks: TaskSet, terms: Sequence[WeighedTerm], counts: Mapping[str, int], response_length: bool
) -> list[MetricShare]:
    """As `objective.shares`, of the means of items: the logarithm of a perplexity is the plain mean of its items.

    Groups that aggregate have the weights of their own rule, and the length of responses counts by documents.

    Args:
        tasks: loaded.
        terms: of the objectives.
        counts: documents of each task.
        response_length: whether that is an objective.

    Raises:
        FitnessError: an aggregation that is no mean over items, naming task and metric.
    """
    sums = total_weights(terms)
    found = []
    for term in terms:
        name = term.term.objective
        for metric in term.metrics:
            direction: Literal["maximize", "minimize"] = "maximize" if metric.factor > 0 else "minimize"
            parts = _parts(tasks, term, metric, counts)
            for task, key in zip(term.tasks, metric.keys, strict=True):
                weight = term.term.weight * abs(metric.factor) / sums[name] * parts[task]
                transform = _transform(task, tasks.tasks[task], key, metric.log)
                if weight > 0:
                    found.append(MetricShare(f"{task}/{key}", weight, direction, name, transform))
    if response_length:
        sizes = {name: counts[name] for name, task in tasks.tasks.items() if generates(task)}
        for task, size in sizes.items():
            weight = size / sum(sizes.values())
            found.append(MetricShare(f"{task}/{RESPONSE_LENGTH}", weight, "minimize", RESPONSE_LENGTH))
    return found


def _transform(name: str, task: Any, key: str, log: bool) -> Literal["", "log"]:
    aggregation = task.aggregation().get(key.split(",")[0], stock.mean)
    if aggregation in (stock.mean, stock.brier_score):
        return "log" if log else ""
    if aggregation is stock.perplexity and log:
        return ""
    do = "set transform: log for it" if aggregation is stock.perplexity else "score candidates on all items"
    how = getattr(aggregation, "__name__", type(aggregation).__name__)
    raise FitnessError(
        f"{name}/{key} cannot be estimated from some items: its aggregation is {how}",
        "mean, brier_score, or perplexity with transform: log",
        do,
    )


def _parts(tasks: TaskSet, term: WeighedTerm, metric: Weighed, counts: Mapping[str, int]) -> dict[str, float]:
    """The share that each task has in a term: an equal one, or by the rule of a group that aggregates."""
    own = f"{term.name}/{metric.keys[0]}"
    sizes: Any = {name: SimpleNamespace(documents=range(count)) for name, count in counts.items()}

    def aggregated(values: Sequence[float]) -> float | None:
        given = {f"{t}/{key}": v for t, key, v in zip(term.tasks, metric.keys, values, strict=True)}
        return group_metrics(tasks, sizes, given).get(own)

    number = len(term.tasks)
    ones = (
        [aggregated([float(i == k) for i in range(number)]) for k in range(number)] if term.name in tasks.groups else []
    )
    weights = [each for each in ones if each is not None]
    if term.name in tasks.tasks or metric.log or not weights:
        return dict.fromkeys(term.tasks, 1 / number)
    uneven = [1 / (k + 2) for k in range(number)]
    found = aggregated(uneven)
    linear = sum(weight * value for weight, value in zip(weights, uneven, strict=True))
    if len(weights) != number or found is None or abs(found - linear) > 1e-9 or min(weights) < 0:
        raise FitnessError(
            f"{own} cannot be estimated from some items: the group does not aggregate as a weighted mean of its tasks",
            "a mean, with or without weight_by_size",
            "score candidates on all items",
        )
    return dict(zip(term.tasks, weights, strict=True))
