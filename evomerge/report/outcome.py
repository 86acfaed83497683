"""Reads from a run folder what a report needs: the baselines' and the winner's scores, and the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.candidate import Evaluation, Split
from evomerge.errors import FitnessError
from evomerge.recipes.pool_info import PoolInfo
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import evaluation_of, read_ledger
from evomerge.run.ledger_file import Event, LedgerError

BEST = "best"
"""Name under which a search scores its best candidate on the held-out items."""

# lm-eval's registry of metrics, and common names of custom ones.
_LOWER_IS_BETTER = frozenset(
    {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
    | {"wer", "cer", "loss", "nll", "mse", "mae", "rmse", "response_length"}
)


class NoBaselinesError(FitnessError):
    """A run without baselines: there is nothing to compare its winner with."""


@dataclass(frozen=True)
class Scored:
    """One model's evaluation on the reported items, under the name that the search gave it."""

    name: str
    evaluation: Evaluation


@dataclass(frozen=True)
class RunRecord:
    """What a run's ledger says of its outcome.

    Attributes:
        folder: the run folder.
        pool: the source models.
        started: the ledger's first event.
        split: ``held_out`` when the winner was scored there, else ``search``.
        baselines: in the order asked.
        best: the winner, or ``None`` when no candidate was ever ok.
        counts: candidates of the search by status, baselines not counted.
        stopped: why the search ended, or ``None`` when it did not end.
        phases: what the ledger says of each part of the search.
        improved: its last improvement: with several objectives, of the Pareto front.
    """

    folder: RunFolder
    pool: PoolInfo
    started: Event
    split: Split
    baselines: tuple[Scored, ...]
    best: Scored | None
    counts: Mapping[str, int]
    stopped: str | None
    phases: tuple[Event, ...] = ()
    improved: Event | None = None

    def weight(self, task: str) -> float:
        """The weight of a task in means; 1 unless the run was started with `task_weights`."""
        weights = self.started.get("task_weights")
        value = weights.get(task, 1.0) if isinstance(weights, Mapping) else 1.0
        return float(value) if isinstance(value, int | float) and value > 0 else 1.0

    def lower_is_better(self, metric: str) -> bool:
        """Whether smaller values of ``task/metric`` are better.

        The run says so (`lower_is_better` or `objectives` of its first event); else the metric's usual name does.
        """
        listed, directions = self.started.get("lower_is_better"), self.started.get("objectives")
        if isinstance(listed, list):
            return metric in listed
        if isinstance(directions, Mapping) and metric in directions:
            return bool(directions[metric] == "minimize")
        return metric_name(metric).partition(",")[0] in _LOWER_IS_BETTER


def task_name(metric: str) -> str:
    """The task of ``task/metric``; task names may contain slashes."""
    return metric.rpartition("/")[0]


def metric_name(metric: str) -> str:
    """The metric of ``task/metric``."""
    return metric.rpartition("/")[2]


def headlines(evaluation: Evaluation) -> dict[str, str]:
    """The first metric of each task, as task to ``task/metric``, in order.

    Where some metrics have per-item scores, only those count: means over a group of tasks have none, and
    would count their tasks twice.
    """
    metrics = [name for name in evaluation.metrics if name in evaluation.items] or list(evaluation.metrics)
    first: dict[str, str] = {}
    for metric in metrics:
        first.setdefault(task_name(metric), metric)
    return first


@dataclass
class _Pass:
    """One pass over the ledger, keeping the named candidates' events and the last improvement's only."""

    started: Event | None = None
    stopped: str | None = None
    names: dict[tuple[Any, Any], list[str]] = field(default_factory=dict)
    told: dict[tuple[Any, Any], Event] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    improved: Event | None = None
    phases: list[Event] = field(default_factory=list)

    def see(self, event: Event) -> None:
        kind, key = event["event"], (event.get("candidate"), event.get("split"))
        if kind == "started":
            self.started = self.started or event
        elif kind == "asked" and event.get("name") is not None:
            self.names.setdefault(key, []).append(str(event["name"]))
        elif kind == "told" and key in self.names:
            self.told[key] = event
        elif kind == "told" and key[1] == "search":
            status = str(event.get("status"))
            self.counts[status] = self.counts.get(status, 0) + 1
        elif kind == "improved":
            self.improved = event
        elif kind == "phase":
            self.phases.append(event)
        elif kind == "stopped":
            self.stopped = str(event.get("reason"))

    def named(self, split: Split) -> list[tuple[str, Event]]:
        """Name and told event of every named candidate of a split, in the order asked."""
        return [
            (name, self.told[key])
            for key, names in self.names.items()
            if key[1] == split and key in self.told
            for name in dict.fromkeys(names)
        ]


def read_run(run: Path | RunFolder) -> RunRecord:
    """Read a run's outcome; of the per-item scores, only those of the reported evaluations.

    Raises:
        LedgerError: the folder is not a run's, or its files are missing or damaged.
        NoBaselinesError: no baseline was scored, so that there is nothing to compare with.
    """
    folder = RunFolder.open(run if isinstance(run, Path) else run.path)
    seen = _Pass()
    for event in read_ledger(folder):
        seen.see(event)
    if seen.started is None:
        raise LedgerError(f"{folder.ledger} has no started event", "the ledger of a run", "start the run again")
    split: Split = "held_out"
    best = next((event for name, event in seen.named(split) if name == BEST), None)
    if best is None:
        split = "search"
        best = _last_told(folder, seen.improved.get("candidate")) if seen.improved is not None else None
    baselines = [(name, event) for name, event in seen.named(split) if name != BEST]
    if not baselines:
        raise NoBaselinesError(
            f"run {folder.path} has no baselines on the {split.replace('_', '-')} items",
            "a report compares the winner with them",
            "search with search.baselines=true, or with held-out items, on which they are always scored",
        )
    return RunRecord(
        folder=folder,
        pool=folder.read_pool(),
        started=seen.started,
        split=split,
        baselines=tuple(_scored(folder, name, event) for name, event in baselines),
        best=_scored(folder, BEST, best) if best is not None else None,
        counts=dict(sorted(seen.counts.items())),
        stopped=seen.stopped,
        phases=tuple(seen.phases),
        improved=seen.improved,
    )


def _last_told(folder: RunFolder, candidate: Any) -> Event | None:
    """A search candidate's evaluation, found by a second pass: the first cannot keep them all."""
    found = None
    for event in read_ledger(folder, on_torn=lambda torn: None):
        own = (event.get("candidate"), event.get("split")) == (candidate, "search")
        if own and event["event"] in ("told", "warm"):
            found = event
    return found


def _scored(folder: RunFolder, name: str, told: Event) -> Scored:
    evaluation = evaluation_of(told)
    items = {}
    if told.get("items") is not None:
        items = read_items(folder, evaluation.candidate, evaluation.split, digest=told.get("items_hash"))
    return Scored(name, evaluation_of(told, items))
