"""How far a run is: from its ledger, also while another process writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evomerge.config.resume_command import resume_command
from evomerge.protocols import Work
from evomerge.recipes.pool_info import UNIFORM
from evomerge.report.calibration_time import CalibrationTime
from evomerge.report.finalists import compared_score, race_lines
from evomerge.report.progress import RunProgress
from evomerge.report.stop_rules import RuleStatus
from evomerge.report.trial import numbers
from evomerge.report.worker_lines import not_begun, read_workers
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import LedgerError, lock_holder
from evomerge.run.ratings.waiting import Waiting, read_waiting
from evomerge.run.remains import require_ledger

State = Literal["running", "ended", "interrupted", "dead", "damaged", "unknown"]
SLICES = ("kept", "referenced", "memory", "shared", "computed")
"""Where slices came from, as evaluations record it (`merge.assemble.MergeCount`)."""
CURVE = 120
"""Points of `RunStatus.curve`."""


@dataclass(frozen=True)
class CacheStatus:
    """What the layer cache did for all evaluations so far.

    Attributes:
        slices: numbers of slices by where they came from.
        bytes: size of all slices.
        computed_bytes: size of those that were merged.
        saved: seconds that computing the others took when they were computed.
    """

    slices: Mapping[str, int]
    bytes: int
    computed_bytes: int
    saved: float

    @property
    def slice_hits(self) -> float | None:
        """Share of slices that were not merged; ``None`` before there are any."""
        total = sum(self.slices.values())
        return 1 - self.slices["computed"] / total if total else None

    @property
    def byte_hits(self) -> float | None:
        """Share of bytes that were not merged."""
        return 1 - self.computed_bytes / self.bytes if self.bytes else None


@dataclass(frozen=True)
class RunStatus:
    """The progress of a run.

    Attributes:
        run: the run folder.
        state: ``running`` when a process holds the ledger's lock, ``ended`` by itself, ``interrupted`` by a signal that
            it saw to, ``dead`` when none of these; ``damaged`` when a line of the ledger is: then the rest tells of
            what comes before it; ``unknown`` where the file system has no locks.
        detail: who writes it, why it ended, or what is damaged.
        evaluations: the budget; ``None`` when the ledger does not say.
        counts: candidates told, by status; without baselines.
        in_flight: candidates asked and not told yet.
        held_out: models scored on the held-out items, of `held_out_asked`, in `held_out_seconds`.
        objective: name of the one that decides.
        direction: ``maximize`` or ``minimize``.
        best: its best value, ``None`` before any.
        best_candidate: who has it.
        compared: its value as the baselines were scored, which gains are of: other than `best` where finalists were
            scored in another precision or on other items; ``None`` where the search did not score it.
        baselines: its value by baseline.
        idle: seconds since the last event.
        seconds: of search up to the last candidate told, without held-out scoring and interruptions.
        per_minute: candidates told in a minute of search.
        stages: median seconds of the latest candidates by stage.
        stage_seconds: seconds of all candidates by stage.
        race: in words, on how many items candidates were scored, and how the finalists fared.
        tokens: that log-likelihoods of all candidates ``run``, and would run in ``stock`` lm-eval; and what ``hidden``
            states saved of those run.
        halved: evaluations, baselines and held-out ones too, whose batches were halved since memory ran out.
        cache: what the layer cache did.
        error: why the last failed candidate failed.
        failures: how many candidates were not ok, by reason.
        curve: the best score so far after equal parts of the candidates told.
        workers: what each does, where that is known.
        phase: the part of the search that is running, when there are several: ``path (2 of 2)``.
        front: recipes on the Pareto front, of a search with several objectives; with its `hypervolume`.
        rules: what ends it early, and how near it is; ``None`` where nothing does.
        calibration: what statistics of data took; ``None`` where no method reads any.
        ratings: what raters have done, and what waits for them; ``None`` where people are not asked.
    """

    run: Path
    state: State
    detail: str
    evaluations: int | None
    counts: Mapping[str, int]
    in_flight: int
    held_out: int
    objective: str
    direction: str
    best: float | None
    best_candidate: int | None
    compared: float | None
    baselines: Mapping[str, float]
    idle: float
    seconds: float
    per_minute: float | None
    stages: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    cache: CacheStatus
    error: str
    failures: Mapping[str, int]
    curve: tuple[float, ...] = ()
    workers: tuple[Work, ...] = ()
    phase: str | None = None
    front: int | None = None
    hypervolume: float | None = None
    held_out_asked: int = 0
    held_out_seconds: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)
    race: tuple[str, ...] = ()
    rules: RuleStatus | None = None
    halved: int = 0
    calibration: CalibrationTime | None = None
    ratings: Waiting | None = None

    @property
    def told(self) -> int:
        """Candidates told."""
        return sum(self.counts.values())

    @property
    def best_baseline(self) -> str | None:
        """Name of the baseline with the best objective; ``None`` without baselines."""
        return self._best_of(self.baselines)

    @property
    def best_source(self) -> str | None:
        """Name of the best model of the pool, averages left out; ``None`` without baselines."""
        return self._best_of({name: value for name, value in self.baselines.items() if name != UNIFORM})

    @property
    def gain(self) -> float | None:
        """How much better the best candidate is than the best baseline; positive is better in either direction."""
        return self.gain_on(self.best_baseline)

    def gain_on(self, baseline: str | None) -> float | None:
        """How much better the best candidate is than a baseline; ``None`` where one of them is not there."""
        if self.compared is None or baseline not in self.baselines:
            return None
        difference = self.compared - self.baselines[str(baseline)]
        return -difference if self.direction == "minimize" else difference

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the time of all candidates by stage; empty before there are any."""
        total = sum(self.stage_seconds.values())
        return {name: value / total for name, value in self.stage_seconds.items()} if total > 0 else {}

    @property
    def per_hour(self) -> float | None:
        """Candidates told in an hour of search."""
        return None if self.per_minute is None else 60 * self.per_minute

    @property
    def left(self) -> float | None:
        """Seconds until the budget is spent, at the speed so far, or the hours are; ``None`` when that is not known."""
        if self.state != "running" or not self.evaluations or not self.per_minute:
            return None
        left = max(0, self.evaluations - self.told) * 60 / self.per_minute
        hours = None if self.rules is None else self.rules.hours
        return left if hours is None or self.rules is None else min(left, max(0.0, 3600 * hours - self.rules.took))

    @property
    def resume(self) -> str:
        """The command that goes on with the run; empty where it goes on by itself, or has ended."""
        return resume_command(self.run) if self.state in ("interrupted", "dead") else ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        own = {name: value for name, value in vars(self).items() if name not in ("run", "cache", "workers")}
        derived = {n: getattr(self, n) for n in ("told", "best_baseline", "gain", "best_source", "left", "resume")}
        gains = {"gain_on_source": self.gain_on(self.best_source), "gain_on_average": self.gain_on(UNIFORM)}
        more: dict[str, Any] = {**gains, "per_hour": self.per_hour, "shares": self.shares}
        curve = [None if value != value else value for value in self.curve]
        hits = {"slice_hits": self.cache.slice_hits, "byte_hits": self.cache.byte_hits}
        own["calibration"] = None if self.calibration is None else self.calibration.as_dict()
        own["ratings"] = None if self.ratings is None else self.ratings.as_dict()
        own["rules"] = None if self.rules is None else asdict(self.rules)
        more |= {"curve": curve, "workers": [asdict(w) for w in self.workers], "cache": {**vars(self.cache), **hits}}
        return {"run": str(self.run), **own, **derived, **more}

    def _best_of(self, baselines: Mapping[str, float]) -> str | None:
        sign = -1 if self.direction == "minimize" else 1
        return max(baselines, key=lambda name: sign * baselines[name], default=None)


def read_status(run: Path | str, now: datetime | None = None) -> RunStatus:
    """The progress of a run from its folder; the ledger's last line may be half written.

    Args:
        run: the run folder.
        now: what `RunStatus.idle` is measured from; the present by default.

    Raises:
        LedgerError: the folder is not a run's, or its ledger is damaged before the search began.
    """
    folder = RunFolder.open(run)
    holder = lock_holder(folder.lock)  # asked first: a run that ends meanwhile then has its last event
    seen = RunProgress()
    damage = None
    try:
        for event in read_ledger(folder, on_torn=lambda torn: None):
            seen.update(event)
    except LedgerError as error:
        if not seen.started:
            raise
        damage = str(error)
    if not seen.started:
        require_ledger(folder, int(seen.last is not None))
        raise not_begun(folder, running=bool(holder))
    if damage is not None:
        return status_of(seen, folder, "damaged", damage, now)
    state, detail = _state(seen, holder)
    return status_of(seen, folder, state, detail, now, read_workers(folder) if state == "running" else ())


def status_of(
    seen: RunProgress,
    folder: RunFolder,
    state: State,
    detail: str,
    now: datetime | None = None,
    workers: tuple[Work, ...] = (),
) -> RunStatus:
    """The progress that events add up to; one of a run that has not begun has one too.

    Args:
        seen: the events so far.
        folder: the run folder.
        state, detail: what is known of its process.
        now: what `RunStatus.idle` is measured from; the present by default.
        workers: what each does.
    """
    told, best, objective = sum(seen.counts.values()), seen.last_improved or {}, seen.objective
    cache = CacheStatus(
        {name: _whole(seen.merge.get(name, 0)) for name in SLICES},
        _whole(seen.merge.get("bytes", 0)),
        _whole(seen.merge.get("computed_bytes", 0)),
        seen.merge.get("saved", 0.0),
    )
    return RunStatus(
        run=folder.path,
        state=state,
        detail=detail,
        evaluations=seen.evaluations,
        counts=dict(sorted(seen.counts.items())),
        in_flight=len(seen.in_flight) if state == "running" else 0,
        held_out=len(seen.held_out),
        objective=objective.name if objective is not None else "",
        direction=objective.direction if objective is not None else "maximize",
        best=numbers(best).get("objective"),
        best_candidate=best.get("candidate"),
        compared=compared_score(seen),
        baselines=seen.baseline_scores,
        idle=0.0 if seen.last is None else max(0.0, ((now or datetime.now(UTC)) - seen.last).total_seconds()),
        seconds=seen.seconds,
        per_minute=60 * told / seen.seconds if told and seen.seconds > 0 else None,
        stages=seen.medians,
        stage_seconds=dict(seen.stages),
        cache=cache,
        error=seen.error,
        failures=dict(sorted(seen.failures.items(), key=lambda entry: -entry[1])),
        curve=seen.curve(CURVE),
        workers=workers,
        phase=seen.phase,
        front=best.get("front"),
        hypervolume=numbers(best).get("hypervolume"),
        rules=seen.rules,
        held_out_asked=seen.held_out_asked,
        held_out_seconds=seen.held_out_seconds,
        tokens=dict(seen.tokens),
        race=race_lines(seen),
        halved=seen.halved,
        calibration=seen.calibration,
        ratings=read_waiting(folder.rating),
    )


def _whole(total: float) -> int:
    """A sum of numbers of a ledger, which may be none that can be counted to."""
    return int(total) if math.isfinite(total) else 0


def _state(seen: RunProgress, holder: str | None) -> tuple[State, str]:
    if seen.stopped is not None:
        return "ended", seen.stopped
    if holder is None:
        if seen.interrupted is not None:
            return "interrupted", seen.interrupted
        return "dead", "no process writes it and it has not ended"
    return ("running", holder) if holder else ("unknown", "its file system has no locks that would tell")
