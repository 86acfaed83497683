"""The outcome of a run in numbers: every model's scores, and how sure the differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Split
from evomerge.errors import FitnessError
from evomerge.report.calibration_time import CalibrationTime
from evomerge.report.outcome import RunRecord, Scored, read_run
from evomerge.report.phase_names import joint_name, together
from evomerge.report.ratings import Agreement, agreement
from evomerge.report.statistics import Comparison, compare
from evomerge.run.folder import RunFolder

Kind = Literal["source", "base", "baseline", "evolved"]


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: the model's name in the pool, ``uniform average`` or ``evolved``.
        kind: what it is.
        candidate: its id in the ledger.
        status: of its evaluation; without scores unless ``ok``.
        scores: headline metric by task.
        mean: weighted mean over tasks; metrics where lower is better count negatively when only some
            tasks have such a metric. ``None`` when a score is missing.
        gain: how much better `mean` is than the best baseline's; positive is better in either direction.
        comparison: paired test against the best baseline; ``None`` for itself and without per-item scores.
    """

    name: str
    kind: Kind
    candidate: int
    status: str
    scores: Mapping[str, float]
    mean: float | None = None
    gain: float | None = None
    comparison: Comparison | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `gain`, where it has bounds and the metric is a mean over items: others have other units."""
        test = self.comparison
        if test is None or self.gain is None or not test.bounded or abs(test.difference - self.gain) >= 1e-6:
            return None
        return test.interval


@dataclass(frozen=True)
class TaskResult:
    """The winner on one task against the baseline that is best on that very task.

    Attributes:
        task, metric: the name of the task, and its headline metric as ``task/metric``.
        lower_is_better: of the metric.
        weight: share of the task in the mean.
        items: number of items, 0 without per-item scores.
        best_baseline, baseline_score: on this task.
        evolved: the winner's score, ``None`` without a winner.
        gain: positive is better in either direction.
        comparison: paired test, ``None`` without per-item scores.
    """

    task: str
    metric: str
    lower_is_better: bool
    weight: float
    items: int
    best_baseline: str
    baseline_score: float
    evolved: float | None = None
    gain: float | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        run: the run folder.
        split: the items that were scored; ``search`` when there was no held-out fitness.
        dtype: of the merged models.
        tasks: in the order of the fitness.
        rows: sources, base, uniform average, then the evolved merge if there is one.
        best_baseline: name of the baseline with the best mean.
        against: the evolved merge's paired test against each baseline, by name.
        counts: candidates of the search by status.
        stopped: why the search ended, ``None`` when it did not.
        recipe: the best recipe's file, if it is there.
        phases: name and evaluations of each part of the search, when there are several.
        front: number of recipes on the Pareto front and its hypervolume above the worst baselines, of a search with
            several objectives; the hypervolume is ``None`` without baselines on the search items.
        race: in words, on how many items candidates were scored, and how the finalists fared.
        guesses: whether the run does not say what metrics count: weights are equal, directions go by names.
        calibration: what statistics of data took; ``None`` where no method reads any.
        ratings: who rated, and how far raters agree; ``None`` where nobody was asked.
    """

    run: Path
    split: Split
    dtype: str
    tasks: tuple[TaskResult, ...]
    rows: tuple[Row, ...]
    best_baseline: str
    against: Mapping[str, Comparison]
    counts: Mapping[str, int]
    stopped: str | None
    recipe: Path | None
    phases: tuple[tuple[str, int], ...] = ()
    front: tuple[int, float | None] | None = None
    guesses: bool = False
    race: tuple[str, ...] = ()
    calibration: CalibrationTime | None = None
    ratings: Agreement | None = None

    @property
    def evolved(self) -> Row | None:
        """The row of the evolved merge, ``None`` when no candidate could be scored."""
        return next((row for row in self.rows if row.kind == "evolved"), None)

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller mean is better: every task's metric is."""
        return all(task.lower_is_better for task in self.tasks)

    @property
    def mixed(self) -> bool:
        """Whether lower is better on some tasks only, so that they count negatively in the mean."""
        return len({task.lower_is_better for task in self.tasks}) == 2


def summarize(run: Path | RunFolder) -> Summary:
    """Summarise a finished run from its folder alone: ledger, per-item scores and pool.

    The best baseline is chosen on the reported items themselves, which favours the baselines.

    Raises:
        LedgerError: the folder is not a run's, or is damaged.
        FitnessError: there are no scored baselines, or models were scored on different tasks or items.
    """
    return summarize_record(read_run(run))


def summarize_record(record: RunRecord) -> Summary:
    """Summarise a run that was read already."""
    models = [*record.baselines, *([record.best] if record.best is not None else [])]
    metrics = next((record.headlines(m.evaluation) for m in reversed(models) if m.evaluation.ok), {})
    measure = _Measure(record, metrics)
    baselines = [model for model in record.baselines if metrics and measure.complete(model)]
    if not baselines:
        raise FitnessError(
            f"run {record.folder.path} has no baseline with a score on every task", "at least one", "see its ledger"
        )
    reference = max(baselines, key=measure.value)
    winner = record.best if record.best is not None and measure.complete(record.best) else None
    rows = tuple(_row(model, measure, reference, record) for model in models)
    against = {m.name: measure.compare(winner, m) for m in baselines} if winner is not None else {}
    return Summary(
        run=record.folder.path,
        split=record.split,
        dtype=record.pool.dtype,
        tasks=tuple(_task(task, measure, baselines, winner) for task in metrics),
        rows=rows,
        best_baseline=reference.name,
        against={name: outcome for name, outcome in against.items() if outcome is not None},
        counts=record.counts,
        stopped=record.stopped,
        recipe=record.folder.best_recipe if record.folder.best_recipe.is_file() else None,
        phases=_phases(record),
        front=_front(record),
        race=record.race,
        guesses=record.guesses,
        calibration=record.calibration,
        ratings=agreement(record.folder),
    )


def _phases(record: RunRecord) -> tuple[tuple[str, int], ...]:
    if len(record.phases) < 2:
        return ()
    groups = together(record.phases)
    return tuple((joint_name(group), sum(int(e.get("evaluations", 0)) for e in group)) for group in groups)


def _front(record: RunRecord) -> tuple[int, float | None] | None:
    improved = record.improved or {}
    size, volume = improved.get("front"), improved.get("hypervolume")
    return (size, float(volume) if isinstance(volume, int | float) else None) if isinstance(size, int) else None


class _Measure:
    """Means and paired tests over the headline metrics of a run."""

    def __init__(self, record: RunRecord, metrics: Mapping[str, str]) -> None:
        self.metrics, self._record = dict(metrics), record
        self.lower = {task for task, metric in metrics.items() if record.lower_is_better(metric)}
        given = {task: record.weight(metric) for task, metric in metrics.items()}
        self.share = {task: weight / sum(given.values()) for task, weight in given.items()}
        self.all_lower = self.lower == set(metrics)

    def sign(self, task: str) -> float:
        """-1 where lower is better."""
        return -1.0 if task in self.lower else 1.0

    def score(self, model: Scored, task: str) -> float:
        """The headline metric of one task."""
        return model.evaluation.metrics[self.metrics[task]]

    def complete(self, model: Scored) -> bool:
        """Whether the model has a score on every task."""
        evaluation = model.evaluation
        return evaluation.ok and all(metric in evaluation.metrics for metric in self.metrics.values())

    def value(self, model: Scored) -> float:
        """Weighted mean of a complete model, signed so that larger is better."""
        return math.fsum(
            self.share[task] * self.sign(task) * self._record.counted(metric, self.score(model, task))
            for task, metric in self.metrics.items()
        )

    def compare(self, a: Scored, b: Scored, tasks: Sequence[str] | None = None) -> Comparison | None:
        """Paired test of `a` against `b`, on all tasks unless given; ``None`` without per-item scores."""
        chosen = list(self.metrics) if tasks is None else list(tasks)
        items = [_items(model, {task: self.metrics[task] for task in chosen}) for model in (a, b)]
        if any(len(values) != len(chosen) for values in items):
            return None
        return compare(items[0], items[1], lower_is_better=self.lower, weights=self.share)


def _items(model: Scored, metrics: Mapping[str, str]) -> dict[str, NDArray[np.float64]]:
    values = model.evaluation.items
    return {task: values[metric] for task, metric in metrics.items() if metric in values}


def _row(model: Scored, measure: _Measure, reference: Scored, record: RunRecord) -> Row:
    kind: Kind = "baseline"
    if model is record.best:
        kind = "evolved"
    elif model.name in record.pool.sources:
        kind = "source"
    elif model.name == record.pool.base:
        kind = "base"
    value = measure.value(model) if measure.complete(model) else None
    tested = value is not None and model is not reference
    return Row(
        name="evolved" if kind == "evolved" else model.name,
        kind=kind,
        candidate=model.evaluation.candidate,
        status=model.evaluation.status,
        scores={
            task: model.evaluation.metrics[m] for task, m in measure.metrics.items() if m in model.evaluation.metrics
        },
        mean=None if value is None else -value if measure.all_lower else value,
        gain=None if value is None else value - measure.value(reference),
        comparison=measure.compare(model, reference) if tested else None,
    )


def _task(task: str, measure: _Measure, baselines: Sequence[Scored], winner: Scored | None) -> TaskResult:
    sign = measure.sign(task)
    best = max(baselines, key=lambda m: sign * measure.score(m, task))
    own = measure.score(winner, task) if winner is not None else None
    items = _items(best, {task: measure.metrics[task]})
    return TaskResult(
        task=task,
        metric=measure.metrics[task],
        lower_is_better=task in measure.lower,
        weight=measure.share[task],
        items=items[task].size if items else 0,
        best_baseline=best.name,
        baseline_score=measure.score(best, task),
        evolved=own,
        gain=None if own is None else sign * (own - measure.score(best, task)),
        comparison=measure.compare(winner, best, [task]) if winner is not None else None,
    )
