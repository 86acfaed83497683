"""The ledger: the append-only record of a run, and the only truth about it.

One event per line (`evomerge.run.ledger_file` says how lines are written). Every event has `seq`, `event` and
`time` (UTC). The events and their fields:

- ``started``: `schema`, `version`, and what the run was started with: `seed`, `evaluations` (the budget),
  `objectives` (name to direction), `shares` (by split what each metric counts: ``task/metric``, weight, direction,
  objective), `stop_rules` (`hours`, `patience` and `target`, those that are set), `overlap` (share of the held-out
  items that are the search's), `fitness` (its fingerprint), `cheap` (that of the
  cheap rung's), `calibration` (seconds that statistics of data took), ...
- ``phase``: `phase` (its name), `preference` (where it is searched for several, this one's weights), `number` (from 1)
  of `phases`, `evaluations`, `genes` (of raw weights their number), `ordered`, `in_flight`, `winner` (the candidate
  that the search space begins with).
- ``warm``: a candidate that was not evaluated here: the fields of ``asked`` and ``told``, and `source` (``RUN#ID``).
- ``asked``: `candidate`, `split`, `name` (baselines), `genome` (values, or as `genomes.encoding` writes it), `parents`,
  `recipe_hash`.
- ``told``: `candidate`, `split`, `status`, `objectives`, `metrics`, `seconds` by stage (as `Evaluation` has them),
  `merge` (what the layer cache did), `tokens` (run, run by stock lm-eval, and of those run what hidden states saved;
  how often its batches were `halved` since memory ran out, where they were),
  `apart` (how far the search's way to score is from the stock tool's, of the winner), `race` (of candidates that were
  not scored on all items at once: `Evaluation.race`), `error`, and `items`,
  `items_hash`: file name and SHA-256 of the per-item scores in the folder ``items``.
- ``improved``: `candidate` (the winner), `objective` (its first), `recipe_hash`; with several objectives also who
  `entered` the Pareto front and who `left` it, its size `front` and its `hypervolume`.
- ``finalists``: `candidates` that were scored on all items in the end, their values of the first objective by the
  search (`search`) and there (`validation`), and the `winner`.
- ``stopped``: `reason`, counts, and where a rule ended the search early `rule` (``hours``, ``patience``, ``target``),
  its `limit`, and `remaining` (what going on would have gained).
- ``interrupted``, ``resumed``: a session ended early, another went on (`since` when, `calibration` as above). Not
  part of the run's content.

Readers ignore events and fields that they do not know, so that later versions can add some.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from evomerge.candidate import Candidate, Evaluation, Items, Split, Status
from evomerge.genomes.encoding import GenomeLog
from evomerge.run.clock import SearchClock
from evomerge.run.folder import RunFolder
from evomerge.run.items import items_bytes
from evomerge.run.ledger_file import Event, LedgerError, LineFile, Lock, TornLine, decode, report_torn, scan
from evomerge.utils.files import sync_file, sync_folder, write_bytes_atomic
from evomerge.utils.installation import VERSION

Kind = tuple[str, str]
"""Name of an event, and its split where it has one."""

SCHEMA = 1
SESSION_EVENTS = ("interrupted", "resumed")
NOT_CONTENT = ("seq", "time", "crc32", "seconds", "merge", "tokens", "apart", "items", "versions")
_SPLITS = get_args(Split)
_OF_CANDIDATES = ("asked", "told", "warm", "improved")


class Ledger:
    """The ledger of a run folder, open for appending: a new one, or one to continue.

    Every event survives the death of the process as soon as `append` returns. Surviving a power failure
    takes an fsync, which is what `sync` is about.

    Args:
        folder: the run folder.
        sync: ``every`` event reaches the disk before `append` returns (items files before their event), or
            all of them at the first event after each `interval`, and at the end.
        interval: seconds.
        observe: told of every event that was written.

    Attributes:
        torn: an incomplete last line that was found and removed, or ``None``.
        live: whether what is appended is new.
        passed: how many events of each kind (name, and split where it has one) the search has appended.
        clock: how long the search has searched.

    Raises:
        LedgerError: another process writes this ledger, a line is damaged, or the file cannot be written.
    """

    live = True

    def __init__(
        self,
        folder: RunFolder,
        *,
        sync: Literal["every", "interval"] = "every",
        interval: float = 1.0,
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        self.folder = folder
        self._observe = observe
        self._every = sync == "every"
        self._interval = interval
        try:
            self._lock = Lock(folder.lock)
            try:
                self._file = LineFile(folder.ledger)
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise LedgerError(
                f"{error.filename or folder.ledger} cannot be opened: {error.strerror}",
                "a run folder that exists and can be written",
                "check the folder",
            ) from error
        self.torn = self._file.torn
        self.passed: Counter[Kind] = Counter()
        self.clock = SearchClock()
        self._genomes = GenomeLog()
        self._synced_at = time.monotonic()
        self._unsynced_items: list[Path] = []
        self._open = True

    def __len__(self) -> int:
        return self._file.lines

    @property
    def nbytes(self) -> int:
        """The length of the file."""
        return self._file.nbytes

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, event: str, **fields: Any) -> int:
        """Write one event and return its `seq`. Fields are JSON values, numpy scalars or arrays.

        Raises:
            LedgerError: the disk is full or fails, or the ledger was closed.
        """
        if not self._open:
            raise LedgerError(f"{self.folder.ledger} was closed", "an open ledger")
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        first = {"schema": SCHEMA, "version": VERSION} if event == "started" else {}
        content = {"event": event, "time": stamp, **first, **fields}
        number = self._file.append(content)
        self.passed[kind_of(content)] += 1
        self.clock.see(content)
        if self._every or time.monotonic() - self._synced_at >= self._interval:
            self.sync()
        if self._observe is not None:
            content["seq"] = number
            self._observe(content)
        return number

    def log_asked(self, candidate: Candidate, split: Split = "search") -> int:
        """Record that a candidate is about to be evaluated."""
        return self.append("asked", **{**self._asked(candidate), "split": split})

    def _asked(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "candidate": candidate.id,
            "split": "search",
            "name": candidate.name,
            "genome": self._genomes.write(candidate.id, candidate.genome),
            "parents": candidate.parents,
            "recipe_hash": None if candidate.recipe is None else candidate.recipe.hash,
        }

    def log_warm(self, candidate: Candidate, evaluation: Evaluation, source: str) -> int:
        """Record a candidate of an earlier run, whose evaluation counts here too."""
        return self.append("warm", **{**self._asked(candidate), **self._told(evaluation)}, source=source)

    def log_told(self, evaluation: Evaluation) -> int:
        """Record an evaluation; its per-item scores are in their file before the event is written."""
        return self.append("told", **self._told(evaluation))

    def _told(self, evaluation: Evaluation) -> dict[str, Any]:
        file, digest = None, None
        if evaluation.items:
            path = self.folder.items_file(evaluation.candidate, evaluation.split)
            data = items_bytes(evaluation.items)
            write_bytes_atomic(path, data, sync=self._every)
            if not self._every:
                self._unsynced_items.append(path)
            file, digest = path.name, hashlib.sha256(data).hexdigest()
        fields = {**vars(evaluation), "items": file, "items_hash": digest}
        del fields["traceback"], fields["responses"]  # for the log, and for files of their own
        for name in ("apart", "race", "penalised"):
            if not fields[name]:
                del fields[name]
        return fields

    def know(self, event: Event) -> None:
        """Learn the genome of an ``asked`` or ``warm`` event that is in the file already: later ones refer to it."""
        self._genomes.read(event["candidate"], event["genome"])

    def in_flight(self, phase: int, wanted: int | None) -> int | None:
        """How many candidates of a phase (counted from 0) shall be in flight: as many as are `wanted`."""
        return wanted

    def went_on(self) -> bool | None:
        """Whether an earlier session asked for more in this phase (or began another); ``None`` where it did neither."""
        return None

    def sync(self) -> None:
        """Wait until everything so far is on the disk: items files first, the events that name them after."""
        for path in self._unsynced_items:
            sync_file(path)
        if self._unsynced_items:
            sync_folder(self.folder.items)
            self._unsynced_items = []
        self._file.sync()
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync, close and give the lock back; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            self.sync()
        finally:
            self._file.close()
            self._lock.release()


def kind_of(event: Mapping[str, Any]) -> Kind:
    """What `Record` and `Ledger.passed` count an event as."""
    return event["event"], str(event.get("split", "")) if event["event"] in ("asked", "told") else ""


def read_ledger(folder: RunFolder | Path, on_torn: Callable[[TornLine], None] | None = None) -> Iterator[Event]:
    """The events of a run in order, one at a time, whether or not the run goes on.

    Args:
        folder: the run folder, or its path.
        on_torn: told of an incomplete last line, which is left out; a warning is logged by default.

    Raises:
        LedgerError: the file is missing, a line is damaged (the message has its number), or a newer evomerge
            wrote it in another format.
    """
    path = RunFolder(folder).ledger if isinstance(folder, Path) else folder.ledger
    for number, line in scan(path, on_torn or (lambda torn: report_torn(path, torn))):
        event = decode(line, f"{path}: line {number}")
        needed = None if event["event"] in _OF_CANDIDATES else 0
        if type(event.get("candidate", needed)) is not int or event.get("split", "search") not in _SPLITS:
            raise LedgerError(f"{path}: line {number} has a malformed candidate or split", "lines that evomerge wrote")
        if event["event"] == "started" and event.get("schema") != SCHEMA:
            raise LedgerError(
                f"{path} has format {event.get('schema')!r}",
                f"evomerge {VERSION} reads format {SCHEMA}",
                f"read it with evomerge {event.get('version')}",
            )
        yield event


def canonical_events(folder: RunFolder | Path) -> list[Event]:
    """What a run did, without when, how long and where: equal for two runs with the same content.

    Leaves out times, seconds by stage, file names (the hash of the per-item scores stays), numbers and
    checksums of lines, and the events of sessions that were interrupted and resumed.
    """
    return [
        {key: value for key, value in event.items() if key not in NOT_CONTENT}
        for event in read_ledger(folder)
        if event["event"] not in SESSION_EVENTS
    ]


def evaluation_of(told: Event, items: Items | None = None) -> Evaluation:
    """The evaluation that a ``told`` event records, exactly; without per-item scores unless `items` are given.

    Raises:
        LedgerError: a field is missing or has the wrong type.
    """
    try:
        if told["status"] not in get_args(Status) or told["split"] not in _SPLITS:
            raise ValueError(f"status {told['status']!r}, split {told['split']!r}")
        return Evaluation(
            candidate=int(told["candidate"]),
            status=told["status"],
            split=told["split"],
            objectives=_numbers(told["objectives"]),
            metrics=_numbers(told["metrics"]),
            items={} if items is None else items,
            seconds=_numbers(told["seconds"]),
            merge=_numbers(told.get("merge", {})),
            error=str(told["error"]),
            tokens=_numbers(told.get("tokens", {})),
            apart=_numbers(told.get("apart", {})),
            race=_numbers(told.get("race", {})),
            penalised=_numbers(told.get("penalised", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LedgerError(f"a told event is malformed ({type(error).__name__}: {error})") from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
