"""The outcome of a run: the baselines' and the winner's scores, with what each metric counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.candidate import Evaluation, Split
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare
from evomerge.recipes.pool_info import PoolInfo
from evomerge.report.calibration_time import CalibrationTime
from evomerge.report.finalists import race_lines
from evomerge.report.progress import RunProgress
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event, LedgerError
from evomerge.run.remains import require_ledger

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
        race: in words, on how many items candidates were scored, and how the finalists fared.
        shares: what metrics count in its objectives, on these items; empty where the run does not say.
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
    race: tuple[str, ...] = ()
    shares: tuple[MetricShare, ...] = ()
    calibration: CalibrationTime | None = None

    def headlines(self, evaluation: Evaluation) -> dict[str, str]:
        """What is shown of an evaluation, as `headlines` says."""
        return headlines(evaluation, self.shares)

    def weight(self, metric: str) -> float:
        """The weight of ``task/metric`` in means, as the fitness declared it; 1 where it did not."""
        return sum(share.weight for share in self.shares if share.metric == metric) or 1.0

    def lower_is_better(self, metric: str) -> bool:
        """Whether smaller values of ``task/metric`` are better.

        The run says so: what its fitness declared, or the direction of an objective of that name; else, of runs from
        before that was written down, the metric's usual name does (`guesses`).
        """
        for share in self.shares:
            if share.metric == metric:
                return share.direction == "minimize"
        directions = self.started.get("objectives")
        if isinstance(directions, Mapping) and metric in directions:
            return bool(directions[metric] == "minimize")
        return metric_name(metric).partition(",")[0] in _LOWER_IS_BETTER

    def counted(self, metric: str, value: float) -> float:
        """What counts of a value of ``task/metric`` in means: itself, or its logarithm where the fitness takes that."""
        return next((share.counted(value) for share in self.shares if share.metric == metric), value)

    @property
    def guesses(self) -> bool:
        """Whether weights are taken to be equal and directions from names, since the run does not say."""
        return not self.shares


def task_name(metric: str) -> str:
    """The task of ``task/metric``; task names may contain slashes."""
    return metric.rpartition("/")[0]


def metric_name(metric: str) -> str:
    """The metric of ``task/metric``."""
    return metric.rpartition("/")[2]


def headlines(evaluation: Evaluation, shares: Sequence[MetricShare] = ()) -> dict[str, str]:
    """What is shown of an evaluation, in order: by task its metric ``task/metric``.

    The metrics that count in the search's objectives, where the run says which these are; a task that counts by
    several has a line for each, named ``task/metric``. Else the first metric of each task: where some have per-item
    scores only those count, as means over a group of tasks have none and would count their tasks twice.
    """
    declared = dict.fromkeys(share.metric for share in shares if share.metric in evaluation.metrics)
    if declared:
        several = Counter(task_name(metric) for metric in declared)
        return {(task_name(metric) if several[task_name(metric)] == 1 else metric): metric for metric in declared}
    metrics = [name for name in evaluation.metrics if name in evaluation.items] or list(evaluation.metrics)
    first: dict[str, str] = {}
    for metric in metrics:
        first.setdefault(task_name(metric), metric)
    return first


def read_run(run: Path | RunFolder) -> RunRecord:
    """Read a run's outcome; of the per-item scores, only those of the reported evaluations.

    Raises:
        LedgerError: the folder is not a run's, or its files are missing or damaged.
        NoBaselinesError: no baseline was scored, so that there is nothing to compare with.
    """
    folder = RunFolder.open(run if isinstance(run, Path) else run.path)
    seen = RunProgress()
    for event in read_ledger(folder):
        seen.update(event)
    if not seen.started:
        require_ledger(folder, int(seen.last is not None))
        raise LedgerError(f"{folder.ledger} has no started event", "the ledger of a run", "start the run again")

    def evaluation(trial: Trial, split: Split) -> Evaluation:
        items = read_items(folder, trial.candidate, split, digest=trial.digest) if trial.digest is not None else {}
        return trial.evaluation(split, items)

    def found() -> Trial | None:
        """The winner's evaluation by a second pass: the first does not keep them all."""
        last = None
        for event in read_ledger(folder, on_torn=lambda torn: None):
            own = event.get("candidate") == seen.winner and event.get("split", "search") != "held_out"
            if own and event["event"] in ("told", "warm"):
                last = event
        return None if last is None else Trial.asked(last, 0).told(last)

    best = seen.held_out.get(BEST) or (found() if seen.winner is not None else None)
    return outcome_of(seen, folder, folder.read_pool, best, evaluation)


def outcome_of(
    seen: RunProgress,
    folder: RunFolder,
    pool: Callable[[], PoolInfo],
    best: Trial | None,
    evaluation: Callable[[Trial, Split], Evaluation],
) -> RunRecord:
    """What a run's events come to.

    Args:
        seen: all of them.
        folder: of the run.
        pool: gives its models; asked once there is something to compare.
        best: the winner on the held-out items, or on the search items where it was not scored on those.
        evaluation: of a trial, with its per-item scores.

    Raises:
        NoBaselinesError: no baseline was scored on the items that the winner was.
    """
    split: Split = "held_out" if BEST in seen.held_out else "search"
    scored = seen.held_out if split == "held_out" else seen.baselines
    baselines = {name: trial for name, trial in scored.items() if name != BEST}
    if not baselines:
        raise NoBaselinesError(
            f"run {folder.path} has no baselines on the {split.replace('_', '-')} items",
            "a report compares the winner with them",
            "search with search.baselines=true, or with held-out items, on which they are always scored",
        )
    return RunRecord(
        folder=folder,
        pool=pool(),
        started=seen.started,
        split=split,
        baselines=tuple(Scored(name, evaluation(trial, split)) for name, trial in baselines.items()),
        best=Scored(BEST, evaluation(best, "validation" if best.split == "validation" else split))
        if best is not None
        else None,
        counts=dict(sorted(seen.counts.items())),
        stopped=seen.stopped,
        phases=tuple(seen.phases),
        improved=seen.last_improved,
        race=race_lines(seen),
        shares=seen.shares(split),
        calibration=seen.calibration,
    )
