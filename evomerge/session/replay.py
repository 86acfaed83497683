"""Going on with a run: its ledger is gone through again, then the search continues where it ended.

What a search does next follows from its configuration and from the evaluations told so far. A resumed search
therefore begins at the beginning: every evaluation in the ledger is handed out again in the ledger's order instead of
being made, and every event that the search wants to write is compared with the one that is there. The first event that
is not there is the first new one. Candidates that were asked and never told are evaluated again. Nothing depends on a
strategy saving itself, and no candidate can be lost or told twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from evomerge.candidate import Candidate, Evaluation, Items, Split
from evomerge.errors import EvomergeError
from evomerge.protocols import Evaluator
from evomerge.run.folder import RunFolder
from evomerge.run.items import items_bytes, read_items
from evomerge.run.ledger import NOT_CONTENT, SESSION_EVENTS, Kind, Ledger, evaluation_of, kind_of
from evomerge.run.ledger_file import Event, LedgerError, decode, encode
from evomerge.run.record import Record
from evomerge.search.in_flight import MOST_IN_FLIGHT
from evomerge.session.wrapped import WrappedEvaluator
from evomerge.utils.files import write_bytes_atomic

_log = logging.getLogger(__name__)
_SAID = 3
_FREE = {
    "phase": ("evaluations", "in_flight"),
    "started": (
        "evaluations",
        "version",
        "versions",
        "from_run",
        "shares",
        "overlap",
        "stop_rules",
        "race",
        "left_open",
        "calibration",
    ),
}
"""Fields that may differ between sessions, by event."""


class RecordedEvaluator(WrappedEvaluator):
    """Hands out the evaluations of a record in its order, then those of another evaluator.

    Candidates that the record has no evaluation of go to the other one at once. So do those whose file of items a
    power failure has taken: what comes back must be what the record says, and is written down again.

    Args:
        evaluator: the other one.
        record: of the run.
    """

    def __init__(self, evaluator: Evaluator, record: Record) -> None:
        super().__init__(evaluator)
        self._record = record
        self._waiting: dict[str, dict[int, Candidate]] = {split: {} for split in get_args(Split)}
        self._lost = 0
        self._early: deque[Evaluation] = deque()  # what the other one made while something lost was waited for

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Remember a candidate that was told before; send off another."""
        if split == "validation":
            self._record.forget_other(candidate.id, candidate.recipe.hash if candidate.recipe is not None else None)
        # What a candidate came to on the cheap rung is part of what it was told with in the end.
        told: Split = "search" if split == "cheap" else split
        if self._record.told(candidate.id, told):
            self._waiting[told][candidate.id] = candidate
        else:
            self._evaluator.submit(candidate, split)

    def collect(self) -> Evaluation:
        """The evaluation that was told first of those that are waited for, else one that is made now."""
        splits: tuple[Split, ...] = get_args(Split)
        for split in splits:
            while self._waiting[split]:
                event = self._record.peek("told", split)
                assert event is not None
                self._record.take("told", split)
                number = int(event["candidate"])
                if number in self._waiting[split]:  # others were refused by the search space, and are so again
                    return evaluation_of(event, self._items(self._waiting[split].pop(number), event, split))
        return self._early.popleft() if self._early else self._evaluator.collect()

    def _items(self, candidate: Candidate, event: Event, split: Split) -> Items:
        if event.get("items") is None:
            return {}
        try:
            return read_items(self._record.folder, candidate.id, split, digest=event["items_hash"])
        except LedgerError as error:
            self._lost += 1
            # All of them are said when a run is opened.
            level = logging.WARNING if self._lost <= _SAID else logging.INFO
            if event.get("race"):
                _log.log(
                    level, "%s; candidate %d raced: estimates to come are made without it", error.given, candidate.id
                )
                return {}
            _log.log(level, "%s; candidate %d is evaluated again", error.given, candidate.id)
        self._evaluator.submit(candidate, split)
        while True:
            found = self._evaluator.collect()
            if (found.candidate, found.split) == (candidate.id, split):
                break
            self._early.append(found)
        data, path = items_bytes(found.items), self._record.folder.items_file(candidate.id, split)
        same = found.objectives == evaluation_of(event).objectives
        if not same or hashlib.sha256(data).hexdigest() != event["items_hash"]:
            reason = f" ({found.error})" if found.error else ""
            raise LedgerError(
                f"{path} is lost, and candidate {candidate.id} does not score again what it did{reason}",
                "a fitness that gives the same scores again",
                "restore the file from a copy, or start a new search with search.warm_start=[RUN]",
            )
        write_bytes_atomic(path, data)
        return found.items


class ContinuedLedger(Ledger):
    """A ledger that goes on: events that are in the record are compared with it, others are appended.

    Args:
        folder, sync, interval, observe: as for `Ledger`.
        record: of the same folder.
        resumed: fields of the ``resumed`` event, which comes before the first new one.

    Attributes:
        resumed: those fields.
        live: whether something new has been written.
        go_live: called when the first new event comes.

    Raises:
        LedgerError: as for `Ledger`, and where the search does not repeat what it did.
    """

    def __init__(
        self,
        folder: RunFolder,
        record: Record,
        *,
        resumed: Mapping[str, Any],
        sync: Literal["every", "interval"] = "every",
        interval: float = 1.0,
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(folder, sync=sync, interval=interval, observe=observe)
        if len(self) != record.lines:
            self.close()
            raise LedgerError(f"{folder.path} was written to meanwhile", "one session at a time", "try again")
        self._record, self.clock = record, record.clock
        self.resumed = {**resumed, "since": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self.live = False
        self.go_live: Callable[[], None] = lambda: None

    def append(self, event: str, **fields: Any) -> int:
        """Compare one event with the record, or write it; returns its `seq`, or that of the recorded one."""
        if event not in SESSION_EVENTS:
            kind = kind_of({"event": event, **fields})
            recorded = self._record.peek(*kind) if event != "told" else None  # those are told apart by candidate
            if recorded is not None and self._same(recorded, {"event": event, **fields}):
                self._record.take(*kind)
                self.passed[kind] += 1
                return int(recorded["seq"])
            self._write_resumed()
        return super().append(event, **fields)

    def log_told(self, evaluation: Evaluation) -> int:
        """Record an evaluation unless it is in the record."""
        if self._record.told(evaluation.candidate, evaluation.split):
            self.passed["told", evaluation.split] += 1
            return -1
        self._write_resumed()
        return super().log_told(evaluation)

    def evaluations(self, passed: Mapping[Kind, int]) -> Iterator[Evaluation]:
        """Of so many events of each kind, the evaluations on the search's items, with these where they are there."""
        for event in self._record.evaluations(passed):
            found = evaluation_of(event)
            if event.get("items") is not None:
                try:
                    items = read_items(self.folder, found.candidate, "search", digest=event["items_hash"])
                except LedgerError as error:
                    _log.info("%s; estimates to come are made without candidate %d", error.given, found.candidate)
                    items = {}
                found = replace(found, items=items)
            yield found

    def skip(self, passed: Mapping[Kind, int]) -> None:
        """Go on after so many events of each kind: the search has them behind it."""
        for event in self._record.lineages(passed):
            self.know(event)
        self._record.skip(passed)
        self.passed = Counter(passed)

    def in_flight(self, phase: int, wanted: int | None) -> int | None:
        """As many as there were when the phase began: the strategy then knew as little when it was asked."""
        recorded = self._record.peek("phase")
        if recorded is None or recorded.get("number") != phase + 1:
            return wanted
        number = recorded.get("in_flight")
        if number is None:
            return None
        return number if type(number) is int and 1 <= number <= MOST_IN_FLIGHT else wanted

    def went_on(self) -> bool | None:
        """What the record says: `True` where more was asked, `False` where another phase began before that."""
        asked, phase = self._record.place("asked", "search"), self._record.place("phase")
        if asked is None and phase is None:
            return None
        return phase is None or (asked is not None and asked < phase)

    def _write_resumed(self) -> None:
        if not self.live:
            self.live = True
            super().append("resumed", **self.resumed)
            self.go_live()

    def _same(self, recorded: Event, fields: Mapping[str, Any]) -> bool:
        """Whether an event is the recorded one; ``False`` where both may be."""
        kind = str(recorded["event"])
        wanted = decode(encode({"seq": 0, **fields}), kind)
        ignored = (*NOT_CONTENT, *_FREE.get(kind, ()))
        differing = [key for key in wanted if key not in ignored and wanted[key] != recorded.get(key)]
        if not differing:
            return True
        # What follows the budget's end: another budget ends elsewhere, with another winner.
        if kind in ("stopped", "finalists") or recorded.get("split") in ("validation", "held_out"):
            return False
        key = differing[0]
        raise LedgerError(
            f"{self.folder.path} does not repeat itself: event {recorded['seq']} ({kind}) had {key} "
            f"{str(recorded.get(key))[:80]}, now it is {str(wanted[key])[:80]}",
            "the same configuration, code, models and numerical libraries as when the run began",
            "resume it where it ran, or start a new search with search.warm_start=[RUN]",
        )


def check_started(record: Record, fitness: str, cheap: str | None, versions: Mapping[str, str]) -> list[str]:
    """What differs from when the run began, a line each.

    Args:
        record: of the run.
        fitness: fingerprint of the fitness now.
        cheap: that of the cheap rung's; ``None`` where there is no such rung.
        versions: of the libraries now, by name.

    Raises:
        EvomergeError: the fitness is not the one that the run began with, or the cheap rung's is not.
    """
    started = record.first("started")
    if started is None:
        return []
    for what, now, before in (
        ("the fitness", fitness, started.get("fitness")),
        ("the cheap rung", cheap, started.get("cheap")),
    ):
        if before != now:
            raise EvomergeError(
                f"{what} has fingerprint {now}, the run began with {before}",
                "the same items, prompts, batches, dtype and tokenizer: scores would not be comparable",
                "undo what has changed, or start a new search with search.warm_start=[RUN]",
            )
    known = started.get("versions")
    known = known if isinstance(known, Mapping) else {}
    return [
        f"{name} was {known.get(name)}, is {now}"
        for name, now in versions.items()
        if name in known and known[name] != now
    ]
