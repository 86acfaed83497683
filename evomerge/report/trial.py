"""One candidate as the ledger tells of it, and how the values of its events are read: the same way by everything."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from evomerge.candidate import Evaluation, Items, Split, Status
from evomerge.run.ledger_file import Event, LedgerError

Numbers = dict[str, float]


@dataclass(slots=True)
class Trial:
    """One candidate on one kind of items: what was asked, and what was told if it was.

    Attributes:
        candidate: its id.
        phase: the number of the phase that asked it, from 0.
        genome: as the ledger keeps it (`evomerge.genomes.encoding`).
        parents: candidates that it was made from.
        recipe_hash: of its recipe.
        asked_at, told_at: seconds since the Unix epoch; NaN when it is still in flight.
        clock: seconds of search until it was told, interruptions left out.
        status: ``ok``, ``infeasible``, ``failed``, ``pruned``; ``""`` while in flight.
        objectives, metrics, seconds, merge, error: as of `evomerge.candidate.Evaluation`.
        digest: hash of its per-item scores, or ``None``.
        source: of a warm start, the run and candidate that it comes from.
        apart: of the winner on held-out items, as of `evomerge.candidate.Evaluation`.
        race: as of `evomerge.candidate.Evaluation`.
        split: the items that it was scored on.
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
    apart: Numbers = field(default_factory=dict)
    race: Numbers = field(default_factory=dict)
    split: str = "search"

    @classmethod
    def asked(cls, event: Event, phase: int) -> Trial:
        """From its ``asked`` event, or another that says who it is."""
        parents = event.get("parents")
        return cls(
            candidate=event.get("candidate"),  # type: ignore[arg-type]  # a number where evomerge wrote it
            phase=phase,
            genome=event.get("genome"),
            parents=tuple(p for p in parents if type(p) is int) if isinstance(parents, list) else (),
            recipe_hash=str(event.get("recipe_hash") or ""),
            asked_at=stamp(event),
            split=str(event.get("split") or "search"),
        )

    def told(self, event: Event, clock: float = math.nan) -> Trial:
        """Take in its ``told`` event."""
        self.told_at, self.clock = stamp(event), clock
        self.status = str(event.get("status"))
        self.objectives, self.metrics = numbers(event.get("objectives")), numbers(event.get("metrics"))
        self.seconds, self.merge = numbers(event.get("seconds")), numbers(event.get("merge"))
        self.error, self.apart = str(event.get("error") or ""), numbers(event.get("apart"))
        self.race = numbers(event.get("race"))
        self.digest = str(event["items_hash"]) if event.get("items") and event.get("items_hash") else None
        return self

    def evaluation(self, split: Split, items: Items) -> Evaluation:
        """What it came to, with its per-item scores."""
        known: tuple[Status, ...] = get_args(Status)
        return Evaluation(
            candidate=self.candidate,
            status=next((status for status in known if status == self.status), "failed"),
            split=split,
            objectives=self.objectives,
            metrics=self.metrics,
            items=items,
            seconds=self.seconds,
            merge=self.merge,
            error=self.error,
        )


def numbers(values: Any) -> Numbers:
    """The entries of a mapping that are numbers, or the words that JSON lines have for those it lacks.

    Booleans are no numbers, and integers that no float is near are left out.
    """
    found: Numbers = {}
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
                with contextlib.suppress(OverflowError):
                    found[str(name)] = float(value)
    return found


def number(values: Any, name: str) -> float:
    """One entry of a mapping as `numbers` reads it; NaN where there is none."""
    value = values.get(name) if isinstance(values, Mapping) else None
    if type(value) is float:  # of every candidate told: the common kind first
        return value
    return numbers({name: value}).get(name, math.nan)


def time_of(text: Any) -> datetime:
    """The time that an event carries; `LedgerError` for what is none."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise LedgerError(f"an event has the time {text!r}", "lines that evomerge wrote") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def stamp(event: Event) -> float:
    """An event's time in seconds since the Unix epoch; NaN where it has none."""
    try:
        return time_of(event.get("time")).timestamp()
    except (LedgerError, OverflowError, ValueError):
        return math.nan
