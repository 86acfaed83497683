"""The rules that end a run early, and how near it is to each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.objectives import Objective
from evomerge.report.formatting import clean, duration
from evomerge.report.trial import number, numbers
from evomerge.run.clock import SearchClock
from evomerge.run.ledger_file import Event
from evomerge.run.remaining_gain import MOST, RemainingGain, remaining_gain


@dataclass(frozen=True)
class RuleStatus:
    """What `search.hours`, `search.patience` and `search.target` are set to, and how near the run is.

    Attributes:
        hours: of search; ``None`` where there is no such rule.
        took: seconds of search so far.
        patience: evaluations without improvement; ``None`` likewise.
        since: evaluations since the last improvement.
        target: values by objective; empty likewise.
        remaining: what as many evaluations more as `patience` says would gain.
    """

    hours: float | None = None
    took: float = 0.0
    patience: int | None = None
    since: int = 0
    target: Mapping[str, float] = field(default_factory=dict)
    remaining: RemainingGain | None = None

    def lines(self) -> list[str]:
        """Each rule in words."""
        found = []
        if self.hours is not None:
            found.append(f"after {duration(3600 * self.hours)} of search, {duration(self.took)} so far")
        if self.patience is not None:
            found.append(self.patience_line())
            found += [str(self.remaining)] if self.remaining is not None else []
        if self.target:
            found.append("at " + ", ".join(f"{clean(name, 40)} {value:g}" for name, value in self.target.items()))
        return found

    def patience_line(self) -> str:
        """How many of the evaluations without improvement there are."""
        return f"{self.since} of {self.patience} evaluations without improvement"


class RuleProgress:
    """Adds up what the rules of a run look at, one event at a time.

    Attributes:
        rule: which one ended the run; ``None`` where none did.
    """

    def __init__(self) -> None:
        self.rule: str | None = None
        self._set: dict[str, Any] = {}
        self._clock = SearchClock()
        self._objectives: list[Objective] = []
        self._named: set[Any] = set()
        self._since, self._best = 0, math.nan
        self._gains = deque[float](maxlen=MOST)
        self._remaining: RemainingGain | None = None

    def update(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["event"]
        self._clock.see(event)
        if kind == "told":
            if event.get("split") == "search" and event.get("candidate") not in self._named:
                self._since += 1
                if self._objectives:
                    value = number(event.get("objectives"), self._objectives[0].name)
                    self._gains.append(self._objectives[0].gain(value))
        elif kind == "improved":
            self._since, self._best = 0, numbers(event).get("objective", math.nan)
        elif kind == "asked":
            if event.get("name") is not None and event.get("split") == "search":
                self._named.add(event.get("candidate"))
        elif kind == "phase":
            self._since = 0
            self._gains.clear()
        elif kind in ("started", "resumed"):
            self.rule = self._remaining = None
            self._set = _rules_set(event.get("stop_rules"))
            given = event.get("objectives")
            for name, way in given.items() if isinstance(given, Mapping) else ():
                self._objectives.append(Objective(str(name), "minimize" if way == "minimize" else "maximize"))
        elif kind == "stopped":
            self.rule = None if event.get("rule") is None else str(event["rule"])
            self._remaining = RemainingGain.from_json(event.get("remaining"))

    @property
    def status(self) -> RuleStatus | None:
        """How near the run is to each rule; ``None`` where none is set."""
        if not self._set:
            return None
        known = dict(self._set)
        if isinstance(known.get("target"), float):
            known["target"] = {objective.name: known["target"] for objective in self._objectives[:1]}
        remaining, patience = self._remaining, known.get("patience")
        if remaining is None and patience is not None and len(self._objectives) == 1:
            remaining = remaining_gain(self._gains, self._objectives[0].gain(self._best), patience)
        return RuleStatus(**known, took=self._clock.seconds, since=self._since, remaining=remaining)


def _rules_set(content: Any) -> dict[str, Any]:
    """The rules of an event, as they were written: what is no rule is left out."""
    given = content if isinstance(content, Mapping) else {}
    found: dict[str, Any] = {}
    if _is_number(given.get("hours")):
        found["hours"] = float(given["hours"])
    if type(given.get("patience")) is int:
        found["patience"] = given["patience"]
    if isinstance(given.get("target"), Mapping):
        found["target"] = {str(name): float(v) for name, v in given["target"].items() if _is_number(v)}
    elif _is_number(given.get("target")):  # as a session that goes on has it of its configuration
        found["target"] = float(given["target"])
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
