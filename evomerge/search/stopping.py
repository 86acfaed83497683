"""When a search ends before its budget is spent: after hours, without improvement, or at a target.

What these rules say follows from the ledger: from the evaluations told, in their order, and from the times of events.
Where a ledger says that an earlier session went on, or went over to the next phase, a search that goes through it again
does the same, whatever its rules say by now: rules decide where the ledger ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.objectives import Objective
from evomerge.run.ledger import Ledger
from evomerge.run.remaining_gain import MOST, RemainingGain, remaining_gain

if TYPE_CHECKING:
    from evomerge.search.incumbent import Incumbent

RULES = ("hours", "patience", "target")
MOST_HOURS = 10**6


@dataclass
class Stopping:
    """How near a search is to an early end.

    Attributes:
        since: evaluations of this phase since the last improvement.
        recent: gains in the first objective of its latest candidates with a score.
        reached: whether a candidate has reached the target.
        rule: which rule has ended the phase, empty before; ``patience`` ends a phase, the others the search.
        limit: what that rule was set to.
        reason: in words.
        remaining: what going on would have gained, where that is known.
    """

    since: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=MOST))
    reached: bool = False
    rule: str = ""
    limit: Any = None
    reason: str = ""
    remaining: RemainingGain | None = None

    @property
    def final(self) -> bool:
        """Whether no other phase begins."""
        return self.rule in ("hours", "target")

    @property
    def event(self) -> dict[str, Any]:
        """Fields of the ``stopped`` event, besides its reason: the rule, where one has ended the search."""
        more = {} if self.remaining is None else {"remaining": self.remaining.to_json()}
        return {"rule": self.rule, "limit": self.limit, **more} if self.rule else {}

    def begin(self) -> None:
        """Another phase begins."""
        self.since, self.rule, self.limit, self.reason, self.remaining = 0, "", None, "", None
        self.recent.clear()

    def end(self, rule: str, limit: Any, reason: str) -> None:
        """Nothing more is asked in this phase."""
        self.rule, self.limit, self.reason = rule, limit, reason

    def state(self) -> dict[str, Any]:
        """JSON values, of a phase that no rule has ended."""
        return {"since": self.since, "recent": list(self.recent), "reached": self.reached}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.since, self.reached = int(state["since"]), bool(state["reached"])
        self.recent.extend(map(float, state["recent"]))


@dataclass(frozen=True)
class StopRules:
    """What ends a search early; nothing by default.

    Attributes:
        objectives: of the fitness.
        hours: of search, over all sessions, by the times of the ledger and without held-out scoring.
        patience: evaluations of a phase without a better winner (of several objectives: with the same front).
        target: by objective what one candidate must reach in all of them.
    """

    objectives: Sequence[Objective] = ()
    hours: float | None = None
    patience: int | None = None
    target: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(settings: Any, objectives: Sequence[Objective]) -> StopRules:
        """The rules of a configuration's ``search``.

        Raises:
            ConfigError: a target that names no objective, or one number for several.
        """
        target = settings.target
        names = [objective.name for objective in objectives]
        if isinstance(target, int | float):
            if len(names) > 1:
                do = f"'search.target={{{names[0]}: {target}}}'"
                raise ConfigError(f"search.target is {target}, and there are {len(names)} objectives", "by name", do)
            target = {names[0]: target}
        for name in target or {}:
            if name not in names:
                raise ConfigError(f"search.target names {str(name)!r}", nearest(str(name), names))
        wanted = {str(name): float(value) for name, value in (target or {}).items()}
        return StopRules(tuple(objectives), settings.hours, settings.patience, wanted)

    @property
    def event(self) -> dict[str, Any]:
        """The rules that are set, as JSON values."""
        found = {"hours": self.hours, "patience": self.patience, "target": dict(self.target) or None}
        return {name: value for name, value in found.items() if value is not None}

    def see(self, progress: Stopping, evaluation: Evaluation, improved: bool) -> None:
        """Take in the evaluation of a candidate, and whether it has changed the winner or the front."""
        progress.since = 0 if improved else progress.since + 1
        if not evaluation.ok or not self.objectives:
            return
        gains = {o.name: o.gain(evaluation.objectives.get(o.name, math.nan)) for o in self.objectives}
        if self.patience is not None and math.isfinite(gains[self.objectives[0].name]):
            progress.recent.append(gains[self.objectives[0].name])
        goals = {o.name: o.gain(self.target[o.name]) for o in self.objectives if o.name in self.target}
        if goals and all(gains[name] >= goal for name, goal in goals.items()):
            progress.reached = True

    def over(self, progress: Stopping, ledger: Ledger, incumbent: Incumbent) -> bool:
        """Whether nothing more is asked in this phase; then `progress` says which rule it was."""
        if progress.rule:
            return True
        went_on = ledger.went_on()
        if went_on is None:
            self._decide(progress, ledger.clock.seconds / 3600, incumbent)
        elif not went_on:  # only patience hands over to another phase
            progress.rule = "patience"
        return bool(progress.rule)

    def _decide(self, progress: Stopping, hours: float, incumbent: Incumbent) -> None:
        if progress.reached:
            goals = ", ".join(f"{name} {value:g}" for name, value in self.target.items())
            progress.end("target", dict(self.target), f"search.target: {goals} was reached")
        elif self.hours is not None and hours >= self.hours:
            progress.end("hours", self.hours, f"search.hours={self.hours:g}: the time is over")
        elif self.patience is not None and progress.since >= self.patience:
            if len(self.objectives) == 1:
                best = self.objectives[0].gain(incumbent.value)
                progress.remaining = remaining_gain(progress.recent, best, self.patience)
            told = f"; {progress.remaining}" if progress.remaining is not None else ""
            reason = f"search.patience={self.patience}: as many evaluations without improvement{told}"
            progress.end("patience", self.patience, reason)


def check_rules(hours: float | None, patience: int | None, target: Any) -> None:
    """What can be said of the rules before the objectives are known.

    Raises:
        ConfigError: names the key.
    """
    if hours is not None and not 0 < hours <= MOST_HOURS:
        raise ConfigError(f"search.hours is {hours}", f"above 0 and at most {MOST_HOURS:,}, or null")
    if patience is not None and patience < 1:
        raise ConfigError(f"search.patience is {patience}", "at least 1, or null")
    values = target.values() if isinstance(target, Mapping) else () if target is None else (target,)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"search.target is {target!r}", "a number, or a mapping of objectives to numbers")
