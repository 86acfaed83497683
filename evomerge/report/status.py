"""How far a run is: from its ledger, also while another process writes it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evomerge.ledger import Event, LedgerError, RunFolder, read_ledger
from evomerge.ledger_file import lock_holder

State = Literal["running", "ended", "dead", "unknown"]
SLICES = ("kept", "referenced", "memory", "shared", "computed")
"""Where slices came from, as evaluations record it (`merge.assemble.MergeCount`)."""
STAGES = ("merge", "model", "other")


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
        state: ``running`` when a process holds the ledger's lock, ``ended`` by itself, ``dead`` when it did neither;
            ``unknown`` where the file system has no locks.
        detail: who writes it, or why it ended.
        evaluations: the budget; ``None`` when the ledger does not say.
        counts: candidates told, by status; without baselines.
        in_flight: candidates asked and not told yet.
        held_out: models scored on the held-out items.
        objective: name of the one that decides.
        direction: ``maximize`` or ``minimize``.
        best: its best value, ``None`` before any.
        best_candidate: who has it.
        baselines: its value by baseline.
        idle: seconds since the last event.
        seconds: of search up to the last candidate told, interruptions left out.
        per_minute: candidates told in a minute of search.
        stages: median seconds of an evaluation by stage.
        cache: what the layer cache did.
        error: why the last failed candidate failed.
        phase: the part of the search that is running, when there are several: ``path (2 of 2)``.
        front: recipes on the Pareto front, of a search with several objectives.
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
    baselines: Mapping[str, float]
    idle: float
    seconds: float
    per_minute: float | None
    stages: Mapping[str, float]
    cache: CacheStatus
    error: str
    phase: str | None = None
    front: int | None = None

    @property
    def told(self) -> int:
        """Candidates told."""
        return sum(self.counts.values())

    @property
    def best_baseline(self) -> str | None:
        """Name of the baseline with the best objective; ``None`` without baselines."""
        sign = -1 if self.direction == "minimize" else 1
        return max(self.baselines, key=lambda name: sign * self.baselines[name], default=None)

    @property
    def gain(self) -> float | None:
        """How much better the best candidate is than the best baseline; positive is better in either direction."""
        if self.best is None or self.best_baseline is None:
            return None
        difference = self.best - self.baselines[self.best_baseline]
        return -difference if self.direction == "minimize" else difference

    @property
    def left(self) -> float | None:
        """Seconds until the budget is spent, at the speed so far; ``None`` when that is not known."""
        if self.state != "running" or not self.evaluations or not self.per_minute:
            return None
        return max(0, self.evaluations - self.told) * 60 / self.per_minute

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        own = {name: value for name, value in vars(self).items() if name not in ("run", "cache")}
        derived = {name: getattr(self, name) for name in ("told", "best_baseline", "gain", "left")}
        hits = {"slice_hits": self.cache.slice_hits, "byte_hits": self.cache.byte_hits}
        return {"run": str(self.run), **own, **derived, "cache": {**vars(self.cache), **hits}}


@dataclass
class _Pass:
    """One pass over the ledger."""

    started: Event | None = None
    stopped: str | None = None
    last: datetime | None = None
    began: bool = False
    seconds: float = 0.0
    told_at: float = 0.0
    names: dict[Any, str] = field(default_factory=dict)
    asked: set[Any] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    held_out: int = 0
    baselines: dict[str, float] = field(default_factory=dict)
    best: Event | None = None
    stages: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})
    merge: dict[str, float] = field(default_factory=dict)
    error: str = ""
    phase: str | None = None

    def see(self, event: Event) -> None:
        kind, candidate, searched = event["event"], event.get("candidate"), event.get("split") == "search"
        self._clock(event)
        if kind == "started":
            self.started = self.started or event
        elif kind == "asked" and searched and event.get("name") is not None:
            self.names[candidate] = str(event["name"])
        elif kind == "asked" and searched:
            self.asked.add(candidate)
            self.began = True
        elif kind == "told":
            self._told(event, candidate, searched)
        elif kind == "improved":
            self.best = event
        elif kind == "phase" and event.get("phases", 1) > 1:
            self.phase = f"{event.get('phase')} ({event.get('number')} of {event.get('phases')})"
        elif kind == "stopped":
            self.stopped = str(event.get("reason"))
        elif kind == "resumed":
            self.stopped = None  # what was in flight still is: it is evaluated again, and not asked anew
            if isinstance(event.get("evaluations"), int):
                self.started = {**(self.started or {}), "evaluations": event["evaluations"]}

    def _clock(self, event: Event) -> None:
        """Add up the time of the search; what lies before a resumed session is not part of it."""
        time = _time(event)
        if self.last is not None and self.began and event["event"] != "resumed" and self.stopped is None:
            self.seconds += max(0.0, (time - self.last).total_seconds())
        self.last = time

    def _told(self, event: Event, candidate: Any, searched: bool) -> None:
        for name, value in _numbers(event.get("merge")).items():
            self.merge[name] = self.merge.get(name, 0.0) + value
        if not searched:
            self.held_out += 1
            return
        if candidate in self.names:
            objectives = _numbers(event.get("objectives"))
            if self.objective in objectives:
                self.baselines[self.names[candidate]] = objectives[self.objective]
            return
        self.asked.discard(candidate)
        self.told_at = self.seconds
        status = str(event.get("status"))
        self.counts[status] = self.counts.get(status, 0) + 1
        if status == "ok":
            for name, value in _numbers(event.get("seconds")).items():
                if name in self.stages:
                    self.stages[name].append(value)
        else:
            self.error = str(event.get("error") or "")

    @property
    def objective(self) -> str:
        """The objective that decides: the first."""
        return next(iter(self.directions), "")

    @property
    def directions(self) -> Mapping[str, str]:
        """Objectives with their directions."""
        found = (self.started or {}).get("objectives")
        return found if isinstance(found, Mapping) else {}


def read_status(run: Path | str, now: datetime | None = None) -> RunStatus:
    """The progress of a run from its folder; the ledger's last line may be half written.

    Args:
        run: the run folder.
        now: what `RunStatus.idle` is measured from; the present by default.

    Raises:
        LedgerError: the folder is not a run's, or its ledger is damaged.
    """
    folder = RunFolder.open(run)
    holder = lock_holder(folder.lock)  # asked first: a run that ends meanwhile then has its last event
    seen = _Pass()
    for event in read_ledger(folder, on_torn=lambda torn: None):
        seen.see(event)
    if seen.started is None or seen.last is None:
        raise LedgerError(
            f"{folder.ledger} has no started event", "the ledger of a run", "wait, or start the run again"
        )
    state, detail = _state(seen, holder)
    told = sum(seen.counts.values())
    budget, best = seen.started.get("evaluations"), seen.best or {}
    cache = CacheStatus(
        {name: int(seen.merge.get(name, 0)) for name in SLICES},
        int(seen.merge.get("bytes", 0)),
        int(seen.merge.get("computed_bytes", 0)),
        seen.merge.get("saved", 0.0),
    )
    return RunStatus(
        run=folder.path,
        state=state,
        detail=detail,
        evaluations=budget if isinstance(budget, int) else None,
        counts=dict(sorted(seen.counts.items())),
        in_flight=len(seen.asked) if state == "running" else 0,
        held_out=seen.held_out,
        objective=seen.objective,
        direction=str(seen.directions.get(seen.objective, "maximize")),
        best=_numbers(best).get("objective"),
        best_candidate=best.get("candidate"),
        baselines=seen.baselines,
        idle=max(0.0, ((now or datetime.now(UTC)) - seen.last).total_seconds()),
        seconds=seen.told_at,
        per_minute=60 * told / seen.told_at if told and seen.told_at > 0 else None,
        stages={name: statistics.median(values) for name, values in seen.stages.items() if values},
        cache=cache,
        error=seen.error,
        phase=seen.phase,
        front=best.get("front"),
    )


def _state(seen: _Pass, holder: str | None) -> tuple[State, str]:
    if seen.stopped is not None:
        return "ended", seen.stopped
    if holder is None:
        return "dead", "no process writes it and it has not ended"
    return ("running", holder) if holder else ("unknown", "its file system has no locks that would tell")


def _time(event: Event) -> datetime:
    try:
        time = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        raise LedgerError(f"event {event.get('seq')} has no time", "lines that evomerge wrote") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _numbers(values: Any) -> dict[str, float]:
    """The entries of a mapping that are finite or spelled numbers."""
    if not isinstance(values, Mapping):
        return {}
    return {str(k): float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
