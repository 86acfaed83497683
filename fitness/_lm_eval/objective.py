"""The objective: which metrics of which tasks count, how much and in which direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.errors import FitnessError, nearest
from evomerge.objectives import MetricShare
from fitness._lm_eval.isolation import StockGenerators
from fitness._lm_eval.loading import LoadedTerm, TaskSet, load_tasks
from fitness._lm_eval.scoring import RawValues, TaskScorer, all_metrics, metric_key
from fitness._lm_eval.task_errors import said
from fitness._lm_eval.terms import MetricTerm, TaskTerm


@dataclass(frozen=True)
class Weighed:
    """A metric in the objective.

    Attributes:
        keys: its key in each of the term's tasks.
        factor: weight and sign, so that larger is better.
        log: whether the logarithm counts.
    """

    keys: tuple[str, ...]
    factor: float
    log: bool


@dataclass(frozen=True)
class WeighedTerm:
    """A task, group or tag in the objective."""

    term: TaskTerm
    name: str
    tasks: tuple[str, ...]
    metrics: tuple[Weighed, ...]


def declared_metrics(task: Any) -> list[str]:
    """Keys of the metrics that a task says it reports, in its order."""
    filters = [ensemble.name for ensemble in task._filters]
    return [metric_key(metric, name) for name in filters for metric in task.aggregation()]


def find_metric(name: str, known: Sequence[str]) -> str | None:
    """The key that a user's metric name means: itself, without ``,none``, or with the first filter that has it."""
    name = name.removesuffix(",none")
    return name if name in known else next((key for key in known if key.split(",")[0] == name), None)


def load_weighed(
    terms: Sequence[TaskTerm], include_path: Sequence[str], timeout: float | None
) -> tuple[StockGenerators, TaskSet, list[WeighedTerm]]:
    """Load the tasks of terms, with the generators that they were loaded under, and weigh their metrics.

    Raises:
        FitnessError: as for `load_tasks` and `weigh`.
    """
    generators = StockGenerators()
    with generators:
        tasks = load_tasks(terms, include_path, timeout)
    with said("the metrics of the tasks cannot be weighed"):
        return generators, tasks, [weigh(term, tasks.tasks) for term in tasks.terms]


def weigh(loaded: LoadedTerm, tasks: Mapping[str, Any]) -> WeighedTerm:
    """A term with its metrics checked against what its tasks declare.

    Raises:
        FitnessError: a metric that a task does not report, with those it does.
    """
    first = tasks[loaded.tasks[0]]
    weighed = []
    declared = declared_metrics(first)
    if not declared and not loaded.term.metrics:
        raise FitnessError(
            f"task {loaded.name!r} reports no metric", "a metric_list with a metric, or metrics of the term"
        )
    for metric in loaded.term.metrics or (MetricTerm(declared[0]),):
        keys = tuple(_key(metric.name, name, tasks[name]) for name in loaded.tasks)
        # a metric that the task does not declare has no direction: lm-eval shows such metrics without an arrow
        rises = bool(first.higher_is_better().get(keys[0].split(",")[0], True))
        weighed.append(Weighed(keys, metric.weight if rises else -metric.weight, metric.transform == "log"))
    return WeighedTerm(loaded.term, loaded.name, loaded.tasks, tuple(weighed))


def _key(metric: str, name: str, task: Any) -> str:
    declared = declared_metrics(task)
    key = find_metric(metric, declared)
    if key is None and not _reports_more(task):
        raise FitnessError(f"task {name!r} does not report the metric {metric!r}", nearest(metric, declared))
    return key or metric


def _reports_more(task: Any) -> bool:
    """Whether a task may report metrics that it does not declare: its own function makes them up."""
    entries = getattr(task.config, "metric_list", None) or []
    return callable(getattr(task.config, "process_results", None)) or any(callable(e.get("metric")) for e in entries)


def group_metrics(tasks: TaskSet, scorers: Mapping[str, TaskScorer], values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of groups that aggregate, by lm-eval's own rules, as ``group/metric``."""
    table: dict[str, Any] = {name: {"sample_len": len(scorer.documents)} for name, scorer in scorers.items()}
    for key, value in values.items():
        task, _, metric = key.partition("/")
        table[task][metric if "," in metric else f"{metric},none"] = value
    found = {}
    for name, group in tasks.groups.items():
        for key, value in group.aggregate(table).items():
            metric, comma, filter_name = key.partition(",")
            if comma and isinstance(value, int | float):
                found[f"{name}/{metric_key(metric, filter_name)}"] = float(value)
    return found


def totals(
    tasks: TaskSet, terms: Sequence[WeighedTerm], scorers: Mapping[str, TaskScorer], raw: Mapping[str, RawValues]
) -> tuple[dict[str, float], dict[str, float]]:
    """Objectives, and every metric of tasks and groups as ``task/metric``, those that objectives are made of first.

    Raises:
        FitnessError: as for `objectives`.
    """
    metrics = all_metrics(scorers, raw)
    metrics |= group_metrics(tasks, scorers, metrics) if tasks.groups else {}
    found = objectives(terms, scorers, raw, metrics)
    first = [share.metric for share in shares(terms)]
    return found, {name: metrics[name] for name in first if name in metrics} | metrics


def objectives(
    terms: Sequence[WeighedTerm],
    scorers: Mapping[str, TaskScorer],
    raw: Mapping[str, RawValues],
    metrics: Mapping[str, float],
) -> dict[str, float]:
    """By objective the weighted mean over its terms of their weighted sums of metrics, larger is better.

    A group counts with its own aggregated metric, or with the mean over its tasks when it has none.

    Args:
        raw: values per document, by task.
        metrics: aggregated values of tasks and groups, as ``task/metric``.

    Raises:
        FitnessError: a metric that was not reported after all, or is not finite.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for term in terms:
        name, weight = term.term.objective, term.term.weight
        weights[name] = weights.get(name, 0.0) + weight
        for metric in term.metrics:
            value = weight * metric.factor * _value(term, metric, scorers, raw, metrics)
            sums[name] = sums.get(name, 0.0) + value
    return {name: total / weights[name] for name, total in sums.items()}


def total_weights(terms: Sequence[WeighedTerm]) -> dict[str, float]:
    """By objective the sum of its terms' weights."""
    sums: dict[str, float] = {}
    for term in terms:
        sums[term.term.objective] = sums.get(term.term.objective, 0.0) + term.term.weight
    return sums


def shares(terms: Sequence[WeighedTerm]) -> list[MetricShare]:
    """What each metric of each task counts in its objective, the weights of an objective summing to at most 1.

    A group's tasks share its weight equally, as in `objectives` where the group has no metric of its own.
    """
    sums = total_weights(terms)
    found = []
    for term in terms:
        name = term.term.objective
        for metric in term.metrics:
            weight = term.term.weight * abs(metric.factor) / sums[name] / len(term.tasks)
            direction: Literal["maximize", "minimize"] = "maximize" if metric.factor > 0 else "minimize"
            for task, key in zip(term.tasks, metric.keys, strict=True):
                if weight > 0:
                    found.append(MetricShare(f"{task}/{key}", weight, direction, name, "log" if metric.log else ""))
    return found


def _value(
    term: WeighedTerm,
    metric: Weighed,
    scorers: Mapping[str, TaskScorer],
    raw: Mapping[str, RawValues],
    metrics: Mapping[str, float],
) -> float:
    own = f"{term.name}/{metric.keys[0]}"
    if term.name not in scorers and own in metrics and not metric.log:
        return _finite(own, metrics[own], metric)
    values = []
    for task, key in zip(term.tasks, metric.keys, strict=True):
        found = find_metric(key, list(raw[task]))
        if found is None:
            raise FitnessError(f"task {task!r} did not report the metric {key!r}", nearest(key, raw[task]))
        value = metrics[f"{task}/{found}"]
        value = scorers[task].log_metric(found, raw[task], value) if metric.log else value
        values.append(_finite(f"{task}/{found}", value, metric))
    return math.fsum(values) / len(values)


def _finite(name: str, value: float, metric: Weighed) -> float:
    if not math.isfinite(value):
        do = "" if metric.log else "for a perplexity use transform: log"
        raise FitnessError(f"metric {name} is {value}", "a finite number", do)
    return value
