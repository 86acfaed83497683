"""What the events of a ledger add up to: kept while a search writes them, or taken from the file of any run."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from evomerge.run.ledger_file import Event, LedgerError

STAGES = ("merge", "model", "other")
_RECENT = 1000  # evaluations that median seconds are of
_KINDS = 20  # different reasons of failures that are told apart
_NUMBER = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")


class Tally:
    """Adds up events, one at a time. Memory is eight bytes for every candidate, whatever the events hold.

    Attributes:
        started: the first event; with the budget of the last session.
        stopped: why the search ended; ``None`` before.
        asked: candidates in flight.
        counts: candidates told, by status; without baselines.
        failures: how many candidates were not ok, by reason: the first message of those that differ in numbers only.
        error: the last of these messages.
        held_out: models scored on the held-out items.
        baselines: the first objective by baseline.
        improved: the last improvement.
        merge: what the layer cache did, added up over all evaluations.
        stages: seconds by stage, added up over the candidates told.
        phase: the part of the search that runs, when there are several.
        interrupted: the signal that ended the last session, ``None`` when none did.
    """

    def __init__(self) -> None:
        self.started: Event | None = None
        self.stopped: str | None = None
        self.asked: set[Any] = set()
        self.counts: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.error = ""
        self.held_out = 0
        self.baselines: dict[str, float] = {}
        self.improved: Event | None = None
        self.merge: dict[str, float] = {}
        self.stages: dict[str, float] = {}
        self.phase: str | None = None
        self.interrupted: str | None = None
        self._names: dict[Any, str] = {}
        self._reasons: dict[str, str] = {}
        self._recent: dict[str, deque[Any]] = {name: deque(maxlen=_RECENT) for name in STAGES}
        self._scores = array("d")
        self._objective: str | None = None
        # Times stay text until they are asked for: a search with candidates of a millisecond would notice.
        self._last: Any = None
        self._told_at: Any = None
        self._begin: Any = None  # of the session, once candidates are asked
        self._sessions = 0.0  # seconds of those before

    def see(self, event: Event) -> None:
        """Add one event."""
        kind = event["event"]
        before, self._last = self._last, event.get("time")
        if kind == "told":
            self._told(event, event.get("candidate"))
        elif kind == "asked":
            if event.get("name") is not None:
                if event.get("split") == "search":
                    self._names[event.get("candidate")] = str(event["name"])
            else:
                self.asked.add(event.get("candidate"))
                if self._begin is None:
                    self._begin = self._last
        elif kind == "improved":
            self.improved = event
        elif kind == "started":
            self.started = self.started or event
        elif kind == "phase" and event.get("phases", 1) not in (0, 1):
            self.phase = f"{event.get('phase')} ({event.get('number')} of {event.get('phases')})"
        elif kind == "stopped":
            self.stopped = str(event.get("reason"))
            self._end(self._last)
        elif kind == "interrupted":
            self.interrupted = str(event.get("reason"))
        elif kind == "resumed":
            if self.stopped is None:
                self._end(before)
            if self._begin is not None or self._sessions:
                self._begin = self._last
            self.interrupted = None
            self.stopped = None  # what was in flight still is: it is evaluated again, and not asked anew
            if isinstance(event.get("evaluations"), int):
                self.started = {**(self.started or {}), "evaluations": event["evaluations"]}

    @property
    def last(self) -> datetime | None:
        """When the last event was; `LedgerError` where it does not say."""
        return None if self._last is None and self.started is None else _time(self._last)

    @property
    def seconds(self) -> float:
        """Of search up to the last candidate told, without what lies between sessions."""
        if self._told_at is None or self._begin is None:
            return self._sessions
        return self._sessions + max(0.0, (_time(self._told_at) - _time(self._begin)).total_seconds())

    @property
    def objective(self) -> str:
        """The objective that decides: the first."""
        if self._objective is None and self.started is not None:
            self._objective = next(iter(self.directions), "")
        return self._objective or ""

    @property
    def directions(self) -> Mapping[str, str]:
        """Objectives with their directions."""
        found = (self.started or {}).get("objectives")
        return found if isinstance(found, Mapping) else {}

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of the latest candidates by stage."""
        known = {name: [v for v in values if isinstance(v, float)] for name, values in self._recent.items()}
        return {name: float(np.median(values)) for name, values in known.items() if values}

    def curve(self, points: int) -> tuple[float, ...]:
        """The best score so far after equal parts of the candidates told, `points` at most; NaN before the first."""
        if not self._scores:
            return ()
        sign = -1.0 if self.directions.get(self.objective) == "minimize" else 1.0
        best = sign * np.fmax.accumulate(sign * np.array(self._scores))
        places = np.linspace(0, len(best), min(points, len(best)) + 1)[1:] - 1
        return tuple(float(value) for value in best[places.round().astype(int)])

    def _end(self, time: Any) -> None:
        """A session is over: what follows is not time of search until it goes on."""
        if self._begin is not None:
            self._sessions += max(0.0, (_time(time) - _time(self._begin)).total_seconds())
        self._begin = self._told_at = None

    def _told(self, event: Event, candidate: Any) -> None:
        _add(self.merge, event.get("merge"))
        if event.get("split") != "search":
            self.held_out += 1
            return
        score = _number(event.get("objectives"), self._objective or self.objective)
        if candidate in self._names:
            if score == score:
                self.baselines[self._names[candidate]] = score
            return
        self.asked.discard(candidate)
        self._told_at = self._last
        status = str(event.get("status"))
        self.counts[status] = self.counts.get(status, 0) + 1
        seconds = event.get("seconds")
        _add(self.stages, seconds)
        if status == "ok":
            self._scores.append(score)
            if seconds:
                for name, recent in self._recent.items():
                    recent.append(seconds.get(name) if isinstance(seconds, dict) else None)
        else:
            self._scores.append(np.nan)
            self._failed(str(event.get("error") or status))

    def _failed(self, error: str) -> None:
        self.error = error
        kind = _NUMBER.sub("", error)
        reason = self._reasons.get(kind)
        if reason is None and len(self._reasons) < _KINDS:
            reason = self._reasons[kind] = error
        reason = reason or "other reasons"
        self.failures[reason] = self.failures.get(reason, 0) + 1


def numbers(values: Any) -> dict[str, float]:
    """The entries of a mapping that are finite or spelled numbers."""
    if not isinstance(values, Mapping):
        return {}
    return {str(k): _float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _add(sums: dict[str, float], values: Any) -> None:
    """Add the numbers of a mapping to those of the same names."""
    if not values or not isinstance(values, dict):
        values = numbers(values)
    for name, value in values.items():
        try:
            sums[name] += value
        except KeyError:
            sums.update(numbers({name: value}))
        except (TypeError, OverflowError):  # a NaN is spelled; an integer that no float is near
            continue


def _number(values: Any, name: str) -> float:
    """One entry of a mapping, NaN where there is none."""
    value = values.get(name) if isinstance(values, (dict, Mapping)) else None
    return _float(value) if isinstance(value, (float, int)) else np.nan


def _float(value: float) -> float:
    """A number as a float, NaN for an integer that no float is near."""
    try:
        return float(value)
    except OverflowError:
        return np.nan


def _time(text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise LedgerError(f"an event has the time {text!r}", "lines that evomerge wrote") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
