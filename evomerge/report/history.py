"""All that a ledger says of a search, in one pass, also where the run was killed or its ledger is damaged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evomerge.candidate import Split
from evomerge.objectives import Objective
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event, LedgerError, TornLine

Numbers = dict[str, float]


@dataclass(slots=True)
class Trial:
    """One candidate on the search items: what was asked, and what was told if it was.

    Attributes:
        candidate: its id.
        phase: the number of the phase that asked it, from 0.
        genome: as the ledger keeps it (`evomerge.genomes.encoding`).
        parents: candidates that it was made from.
        recipe_hash: of its recipe.
        asked_at, told_at: seconds since the Unix epoch; NaN when it is still in flight.
        clock: seconds of search until it was told, interruptions left out.
        status: ``ok``, ``infeasible``, ``failed``, ``pruned``; ``""`` while in flight.
        objectives, metrics, seconds, merge, error: see `Evaluation`.
        digest: hash of its per-item scores, or ``None``.
        source: of a warm start, the run and candidate that it comes from.
    """

    candidate: int
    phase: int
    genome: Any
    parents: tuple[int, ...]
    recipe_hash: str
    asked_at: float
    told_at: float = math.nan
    clock: float = math.nan
    status: str = ""
    objectives: Numbers = field(default_factory=dict)
    metrics: Numbers = field(default_factory=dict)
    seconds: Numbers = field(default_factory=dict)
    merge: Numbers = field(default_factory=dict)
    error: str = ""
    digest: str | None = None
    source: str | None = None


@dataclass
class History:
    """A run's search.

    Attributes:
        folder: the run folder.
        started: the ledger's first event; empty when it has none.
        objectives: in order.
        phases: the events of the search's parts.
        trials: told candidates, in the order told; baselines are not among them.
        in_flight: asked and not told.
        baselines: the pool's own models on the search items, by name.
        held_out: models on the held-out items, by name; the winner is called ``best``.
        improved: the events of improvements, each with the `clock` and the number of trials told `at` that time.
        stopped: why the search ended, or ``None``.
        interrupted: how the last session ended, where a signal ended it.
        sessions: how many there were.
        seconds: of search.
        evaluations: the budget, or ``None``.
        damage: what is wrong with the ledger from some line on, or ``None``.
        torn: whether the last line was incomplete.
    """

    folder: RunFolder
    started: Event = field(default_factory=dict)
    objectives: tuple[Objective, ...] = ()
    phases: list[Event] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    in_flight: dict[int, Trial] = field(default_factory=dict)
    baselines: dict[str, Trial] = field(default_factory=dict)
    held_out: dict[str, Trial] = field(default_factory=dict)
    improved: list[Event] = field(default_factory=list)
    stopped: str | None = None
    interrupted: str | None = None
    sessions: int = 1
    seconds: float = 0.0
    evaluations: int | None = None
    damage: str | None = None
    torn: bool = False
    _last: float = math.nan
    _searching: bool = False
    _named: dict[tuple[int, Split], list[str]] = field(default_factory=dict)

    @property
    def winner(self) -> int | None:
        """The best candidate so far."""
        return int(self.improved[-1]["candidate"]) if self.improved else None

    @property
    def genes(self) -> list[list[str]]:
        """Names of every phase's genes; none where they are raw weights."""
        return [[str(n) for n in p["genes"]] if isinstance(p.get("genes"), list) else [] for p in self.phases]

    def see(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["event"]
        now = _stamp(event)
        if self._searching and kind != "resumed" and self.stopped is None and now > self._last:
            self.seconds += now - self._last
        self._last = now if math.isfinite(now) else self._last
        handler = getattr(self, f"_see_{kind}", None)
        if handler is not None:
            handler(event, now)

    def _see_started(self, event: Event, now: float) -> None:
        if self.started:
            return
        self.started = event
        directions = event.get("objectives")
        if isinstance(directions, Mapping):
            self.objectives = tuple(
                Objective(str(name), "minimize" if way == "minimize" else "maximize")
                for name, way in directions.items()
            )
        self._budget(event)

    def _see_phase(self, event: Event, now: float) -> None:
        self.phases.append(event)

    def _see_asked(self, event: Event, now: float) -> None:
        candidate, split = event["candidate"], event["split"]
        if event.get("name") is not None:
            self._named.setdefault((candidate, split), []).append(str(event["name"]))
        elif split == "search" and candidate not in self.in_flight:
            self._searching = True
            self.in_flight[candidate] = self._asked(event, now)

    def _see_told(self, event: Event, now: float) -> None:
        candidate, split = event["candidate"], event["split"]
        names = self._named.get((candidate, split))
        if names:
            for name in dict.fromkeys(names):
                scored = self.held_out if split == "held_out" else self.baselines
                scored.setdefault(name, self._told(self._asked(event, now), event, now))
        elif split == "search" and candidate in self.in_flight:
            self.trials.append(self._told(self.in_flight.pop(candidate), event, now))

    def _see_warm(self, event: Event, now: float) -> None:
        trial = self._told(self._asked(event, now), event, now)
        trial.source = str(event.get("source", ""))
        self.trials.append(trial)

    def _see_improved(self, event: Event, now: float) -> None:
        if type(event.get("candidate")) is int:
            self.improved.append({**event, "clock": self.seconds, "at": len(self.trials)})

    def _see_stopped(self, event: Event, now: float) -> None:
        self.stopped, self.interrupted = str(event.get("reason")), None

    def _see_interrupted(self, event: Event, now: float) -> None:
        self.interrupted = str(event.get("reason"))

    def _see_resumed(self, event: Event, now: float) -> None:
        self.sessions += 1
        self.stopped = self.interrupted = None
        self._budget(event)

    def _budget(self, event: Event) -> None:
        if type(event.get("evaluations")) is int:
            self.evaluations = event["evaluations"]

    def _asked(self, event: Event, now: float) -> Trial:
        parents = event.get("parents")
        return Trial(
            candidate=event["candidate"],
            phase=max(0, len(self.phases) - 1),
            genome=event.get("genome"),
            parents=tuple(p for p in parents if type(p) is int) if isinstance(parents, list) else (),
            recipe_hash=str(event.get("recipe_hash") or ""),
            asked_at=now,
        )

    def _told(self, trial: Trial, event: Event, now: float) -> Trial:
        trial.told_at, trial.clock = now, self.seconds
        trial.status = str(event.get("status"))
        trial.objectives, trial.metrics = numbers(event.get("objectives")), numbers(event.get("metrics"))
        trial.seconds, trial.merge = numbers(event.get("seconds")), numbers(event.get("merge"))
        trial.error = str(event.get("error") or "")
        trial.digest = str(event["items_hash"]) if event.get("items") and event.get("items_hash") else None
        return trial


def read_history(run: Path | str | RunFolder) -> History:
    """Read a run's ledger as far as it can be read.

    Raises:
        LedgerError: the folder is not a run's. A damaged line is no error: what comes before it counts, and
            `History.damage` says what is wrong.
    """
    folder = RunFolder.open(run.path if isinstance(run, RunFolder) else run)
    history = History(folder)

    def torn(line: TornLine) -> None:
        history.torn = True

    try:
        for event in read_ledger(folder, torn):
            history.see(event)
    except (LedgerError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, LedgerError) else f"{type(error).__name__}: {error}"
        history.damage = reason
    return history


def numbers(values: Any) -> Numbers:
    """The entries of a mapping that are numbers, or the words that JSON lines have for those it lacks."""
    found: Numbers = {}
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
                with contextlib.suppress(OverflowError):  # an integer that no float is near
                    found[str(name)] = float(value)
    return found


def _stamp(event: Event) -> float:
    try:
        time = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        return math.nan
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
