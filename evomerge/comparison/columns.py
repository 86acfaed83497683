"""The columns of a protocol's table: the metrics that the fitness of its test counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.report.outcome import metric_name, task_name


@dataclass(frozen=True)
class Column:
    """A metric of the test.

    Attributes:
        name: the task, with the metric where it has several.
        task: it.
        metric: ``task/metric``, as evaluations have it.
        lower_is_better: whether it is; then it is not part of averages.
    """

    name: str
    task: str
    metric: str
    lower_is_better: bool


def columns_of(given: Iterable[MetricShare], objectives: Sequence[Objective], whose: str) -> list[Column]:
    """The columns of a fitness.

    Args:
        given: what its metrics count.
        objectives: its own; one of no task's metric, the length of responses say, is a column too.
        whose: they are, for messages.

    Raises:
        FitnessError: it says of no metric what it counts.
    """
    shares = {share.metric: share for share in given}
    several = Counter(task_name(metric) for metric in shares)
    found = []
    for metric, share in shares.items():
        task = task_name(metric)
        own = f"{task} {metric_name(metric).partition(',')[0]}" if several[task] > 1 else task
        found.append(Column(own, task, metric, share.direction == "minimize"))
    known = {share.objective or "score" for share in shares.values()}
    for objective in objectives:
        if objective.name not in known and found:
            found.append(Column(objective.name, "", objective.name, objective.direction == "minimize"))
    if not found:
        raise FitnessError(f"{whose} does not say what counts", "one with metrics by task")
    return found
