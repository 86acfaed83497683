"""What the events of a ledger add up to: the one reader of a run, while a search writes it or from the file of any."""

from __future__ import annotations

import math
import re
from array import array
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from evomerge.objectives import MetricShare, Objective
from evomerge.report.calibration_time import CalibrationTime
from evomerge.report.clock import Clock
from evomerge.report.phase_names import running_phase
from evomerge.report.race_progress import RaceProgress
from evomerge.report.stop_rules import RuleProgress, RuleStatus
from evomerge.report.trial import Trial, number, numbers, time_of
from evomerge.run.ledger_file import Event

STAGES = ("cheap", "merge", "model", "other")
_RECENT = 1000  # evaluations that median seconds are of
_KINDS = 20  # different reasons of failures that are told apart
_NUMBER = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")


class RunProgress:
    """Adds up events, one at a time. Memory is eight bytes for every candidate, whatever the events hold.

    `evomerge.report.history.History` is one that keeps every candidate too.

    Attributes:
        started: the first event; empty before there is one.
        evaluations: the budget of the last session; ``None`` where the ledger does not say.
        phases: the events of the search's parts.
        sessions: how many there were.
        stopped: why the search ended; ``None`` before.
        interrupted: the signal that ended the last session, ``None`` when none did.
        in_flight: candidates asked and not told.
        counts: candidates told, by status; without baselines.
        failures: how many candidates were not ok, by reason: the first message of those that differ in numbers only.
        error: the last of these messages.
        baselines: the pool's own models on the search items, by name.
        held_out: models on the held-out items, by name; the winner is called ``best``.
        last_improved: the last improvement; once a finalist has won, it.
        finalists: the event of the finalists; empty where there were none.
        validated: candidates that were scored on all items in the end, by id.
        race: on how many items candidates were scored, where they raced.
        merge: what the layer cache did, added up over all evaluations.
        stages: seconds by stage, added up over the candidates told.
        tokens: that their log-likelihoods ``run``, and would run in ``stock`` lm-eval; what ``hidden`` states saved.
        halved: evaluations, of all kinds, whose batches were halved since memory ran out.
    """

    def __init__(self) -> None:
        self.started: Event = {}
        self.evaluations: int | None = None
        self.phases: list[Event] = []
        self.sessions = 1
        self.stopped: str | None = None
        self.interrupted: str | None = None
        self.in_flight: dict[Any, Any] = {}
        self.counts: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.error = ""
        self.baselines: dict[str, Trial] = {}
        self.held_out: dict[str, Trial] = {}
        self.last_improved: Event | None = None
        self.finalists: Event = {}
        self.validated: dict[Any, Trial] = {}
        self.race = RaceProgress()
        self.merge: dict[str, float] = {}
        self.tokens: dict[str, float] = {}
        self.halved = 0
        self._calibrated: float | None = None
        self.stages: dict[str, float] = {}
        self._named: dict[tuple[Any, Any], list[str]] = {}
        self._reasons: dict[str, str] = {}
        self._recent: dict[str, deque[Any]] = {name: deque(maxlen=_RECENT) for name in STAGES}
        self._scores = array("d")
        self._ends = RuleProgress()
        self._objective: str | None = None
        # Times stay text until they are asked for: a search with candidates of a millisecond would notice.
        self._last: Any = None
        self._search, self._judging = Clock(), Clock()

    def update(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["event"]
        before, self._last = self._last, event.get("time")
        self._ends.update(event)
        if kind == "told":
            self._told(event)
        elif kind == "asked":
            self._asked(event)
        elif kind == "improved":
            self.last_improved = event
            self._improved(event)
        elif kind == "finalists":
            self._finalists(event)
        elif kind == "warm":
            self._warm(event)
        elif kind == "started":
            self.started = self.started or event
            self._budget(event)
        elif kind == "phase":
            self.phases.append(event)
        elif kind == "stopped":
            self.stopped, self.interrupted = str(event.get("reason")), None
            self._end(self._last)
        elif kind == "interrupted":
            self.interrupted = str(event.get("reason"))
        elif kind == "resumed":
            if self.stopped is None:
                self._end(before)
            self._search.go_on(self._last)
            self.sessions += 1
            # What was in flight still is: it is evaluated again, and not asked anew.
            self.stopped = self.interrupted = None
            self._budget(event)

    @property
    def rules(self) -> RuleStatus | None:
        """What ends the run early, and how near it is; ``None`` where nothing does."""
        return self._ends.status

    @property
    def stop_rule(self) -> str | None:
        """Which rule ended it early; ``None`` where none did."""
        return self._ends.rule

    @property
    def last(self) -> datetime | None:
        """When the last event was; `LedgerError` where it does not say."""
        return None if self._last is None and not self.started else time_of(self._last)

    @property
    def seconds(self) -> float:
        """Of search up to the last candidate told, without held-out scoring and what lies between sessions."""
        return self._search.seconds

    @property
    def held_out_seconds(self) -> float:
        """Of held-out scoring up to the last model told."""
        return self._judging.seconds

    @property
    def calibration(self) -> CalibrationTime | None:
        """What statistics of data took; ``None`` where no method reads any."""
        return CalibrationTime.of(self._calibrated, self.seconds + self.held_out_seconds)

    @property
    def held_out_asked(self) -> int:
        """How many models are to be scored on the held-out items."""
        return sum(len(names) for (_, split), names in self._named.items() if split == "held_out")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """In order; the first decides."""
        found = self.started.get("objectives")
        ways = found if isinstance(found, Mapping) else {}
        return tuple(Objective(str(n), "minimize" if way == "minimize" else "maximize") for n, way in ways.items())

    @property
    def objective(self) -> Objective | None:
        """The one that decides; ``None`` where the run does not say."""
        return next(iter(self.objectives), None)

    @property
    def phase(self) -> str | None:
        """The part of the search that runs, when there are several."""
        return running_phase(self.phases)

    @property
    def winner(self) -> int | None:
        """The best candidate so far."""
        found = (self.last_improved or {}).get("candidate")
        return found if type(found) is int else None

    @property
    def baseline_scores(self) -> dict[str, float]:
        """The first objective by baseline."""
        name = self.objective.name if self.objective is not None else ""
        scores = {baseline: trial.objectives.get(name) for baseline, trial in self.baselines.items()}
        return {baseline: score for baseline, score in scores.items() if score is not None and score == score}

    def shares(self, split: str) -> tuple[MetricShare, ...]:
        """What the metrics of a split count; empty where the run does not say, as before it was written down."""
        given = self.started.get("shares")
        entries = given.get(split) if isinstance(given, Mapping) else None
        found = [MetricShare.from_json(entry) for entry in (entries if isinstance(entries, list) else ())]
        return tuple(share for share in found if share is not None)

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of the latest candidates by stage."""
        known = {name: [v for v in values if isinstance(v, float)] for name, values in self._recent.items()}
        return {name: float(np.median(values)) for name, values in known.items() if values}

    def curve(self, points: int) -> tuple[float, ...]:
        """The best score so far after equal parts of the candidates told, `points` at most; NaN before the first."""
        if not self._scores:
            return ()
        sign = -1.0 if self.objective is not None and self.objective.direction == "minimize" else 1.0
        best = sign * np.fmax.accumulate(sign * np.array(self._scores))
        places = np.linspace(0, len(best), min(points, len(best)) + 1)[1:] - 1
        return tuple(float(value) for value in best[places.round().astype(int)])

    def _budget(self, event: Event) -> None:
        if type(event.get("evaluations")) is int:
            self.evaluations = event["evaluations"]
        if 0 <= (seconds := numbers(event).get("calibration", -1.0)) < math.inf:
            self._calibrated = (self._calibrated or 0.0) + seconds

    def _end(self, time: Any) -> None:
        """A session is over: what follows is not time of search until it goes on."""
        self._search.end(None if self._judging.running else time)
        self._judging.end()

    def _asked(self, event: Event) -> None:
        candidate, split = event.get("candidate"), event.get("split")
        if event.get("name") is not None:
            self._named.setdefault((candidate, split), []).append(str(event["name"]))
            if split == "held_out":
                self._judging.begin(self._last)
        elif split == "validation":
            self.validated[candidate] = Trial.asked(event, self._phase)
        elif split == "search" and candidate not in self.in_flight:
            self._search.begin(self._last)
            self.in_flight[candidate] = self._trial(event)

    def _told(self, event: Event) -> None:
        candidate, split = event.get("candidate"), event.get("split")
        _add(self.merge, event.get("merge"))
        tokens = event.get("tokens")
        if tokens and isinstance(tokens, dict) and "halved" in tokens:
            self.halved += 1
            tokens = {name: value for name, value in tokens.items() if name != "halved"}
        names = self._named.get((candidate, split)) if self._named else None
        if split == "held_out":
            self._judging.mark(self._last)
        if names:
            scored = self.baselines if split == "search" else self.held_out
            for name in dict.fromkeys(names):
                scored[name] = Trial.asked(event, self._phase).told(event, self.seconds)
            return
        if split != "search":
            if split == "validation" and candidate in self.validated:
                self.validated[candidate].told(event, self.seconds)
            return
        known = self.in_flight.pop(candidate, None)
        self._search.mark(self._last)
        status = str(event.get("status"))
        self.counts[status] = self.counts.get(status, 0) + 1
        seconds = event.get("seconds")
        _add(self.stages, seconds)
        _add(self.tokens, tokens)
        if self._objective is None:
            self._objective = self.objective.name if self.objective is not None else ""
        self.race.see(event.get("race"), event.get("objectives"), self._objective)
        if status in ("ok", "pruned"):
            self._scores.append(number(event.get("objectives"), self._objective) if status == "ok" else np.nan)
            if seconds:
                for name, recent in self._recent.items():
                    recent.append(seconds.get(name) if isinstance(seconds, dict) else None)
        else:
            self._scores.append(np.nan)
            self._failed(str(event.get("error") or status))
        self._kept(known, event)

    @property
    def _phase(self) -> int:
        return max(0, len(self.phases) - 1)

    def _trial(self, event: Event) -> Any:
        """What is kept of a candidate in flight."""
        return None

    def _kept(self, known: Any, event: Event) -> None:
        """Keep a candidate that was told."""

    def _warm(self, event: Event) -> None:
        """Keep a candidate of an earlier run."""

    def _improved(self, event: Event) -> None:
        """Keep an improvement."""

    def _finalists(self, event: Event) -> None:
        """Take the finalist that won for the winner."""
        self.finalists = event
        candidates, values = event.get("candidates"), event.get("validation")
        if isinstance(candidates, list) and isinstance(values, list) and event.get("winner") in candidates:
            place = candidates.index(event["winner"])
            value = dict(enumerate(values)).get(place)
            self.last_improved = {**event, "candidate": event["winner"], "objective": value}

    def _failed(self, error: str) -> None:
        self.error = error
        kind = _NUMBER.sub("", error)
        reason = self._reasons.get(kind)
        if reason is None and len(self._reasons) < _KINDS:
            reason = self._reasons[kind] = error
        reason = reason or "other reasons"
        self.failures[reason] = self.failures.get(reason, 0) + 1


def _add(sums: dict[str, float], values: Any) -> None:
    """Add the numbers of a mapping to those of the same names."""
    if not values or not isinstance(values, dict):
        return
    for name, value in values.items():
        try:
            sums[name] += value
        except KeyError:
            sums.update(numbers({name: value}))
        except (TypeError, OverflowError):  # a NaN is spelled; an integer that no float is near
            continue
