"""What a run's ledger holds, by kind of event: for a search that goes through it again."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

from evomerge.candidate import Split
from evomerge.run.clock import SearchClock
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import SESSION_EVENTS, Kind, kind_of
from evomerge.run.ledger_file import Event, LedgerError, TornLine, decode, report_torn, scan

_NONE = array("q")


class Record:
    """What the ledger of a run holds, by kind of event, each kind to be gone through once.

    Memory is eight bytes for every event and one for every candidate. The file may grow meanwhile: what is appended
    later is not part of the record.

    Attributes:
        events, lines: how many there are, without and with those of sessions.
        proposed: how many candidates were asked, baselines not counted.
        finished: whether the search came to its end.
        clock: how long it has searched.
        with_items: how many evaluations have a file of per-item scores.

    Args:
        folder: the run folder; an empty ledger is a run that had not begun.

    Raises:
        LedgerError: the ledger is missing or damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._offsets: dict[Kind, array[int]] = {}
        self._taken: dict[Kind, int] = {}
        self._told: dict[str, bytearray] = {}
        self._validated: dict[int, str | None] = {}
        self.events = self.lines = self.proposed = self.with_items = offset = 0
        self.finished = self._lineages = False
        self.clock = SearchClock()
        for number, line in scan(folder.ledger, self._torn):
            event = decode(line, f"{folder.ledger}: line {number}")
            self.clock.see(event)
            if event["event"] not in SESSION_EVENTS:
                self._note(event, offset)
                self.events += 1
                self.finished = event["event"] == "stopped"
            offset += len(line)
            self.lines = number
        self._file = folder.ledger.open("rb")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def count(self, event: str, split: str = "") -> int:
        """How many events of a kind there are."""
        return len(self._offsets.get((event, split), _NONE))

    def peek(self, event: str, split: str = "") -> Event | None:
        """The next event of a kind that was not taken, or ``None``."""
        place = self.place(event, split)
        return None if place is None else self._read(place)

    def place(self, event: str, split: str = "") -> int | None:
        """Where in the file the next event of a kind is that was not taken, or ``None``."""
        offsets, place = self._offsets.get((event, split), _NONE), self._taken.get((event, split), 0)
        return offsets[place] if place < len(offsets) else None

    def take(self, event: str, split: str = "") -> None:
        """Go on to the one after."""
        self._taken[event, split] = self._taken.get((event, split), 0) + 1

    def skip(self, passed: Mapping[Kind, int]) -> None:
        """Go on after so many events of each kind, from the first."""
        self._taken = dict(passed)

    def lineages(self, passed: Mapping[Kind, int]) -> Iterator[Event]:
        """Of so many events of each kind, those that name genomes, where genomes refer to each other; else none."""
        if self._lineages:
            kinds: tuple[Kind, ...] = (("asked", "search"), ("warm", ""))
            for offset in sorted(o for kind in kinds for o in self._offsets.get(kind, _NONE)[: passed.get(kind, 0)]):
                yield self._read(offset)

    def evaluations(self, passed: Mapping[Kind, int]) -> Iterator[Event]:
        """Of so many events of each kind, those of evaluations on the search's items."""
        for offset in self._offsets.get(("told", "search"), _NONE)[: passed.get(("told", "search"), 0)]:
            yield self._read(offset)

    def told(self, candidate: int, split: Split) -> bool:
        """Whether the evaluation of a candidate is in the record."""
        marks = self._told.get(split, b"")
        return candidate < len(marks) and bool(marks[candidate])

    def forget_other(self, candidate: int, recipe_hash: str | None) -> None:
        """Forget what a finalist had where its number was another recipe's: of a run that was given more evaluations.

        The mean of a distribution gets its number when the budget ends, and with a larger one another candidate does.
        """
        if self._validated.get(candidate, recipe_hash) != recipe_hash and self.told(candidate, "validation"):
            self._told["validation"][candidate] = 0

    def first(self, event: str, split: str = "") -> Event | None:
        """The first event of a kind, taken or not."""
        offsets = self._offsets.get((event, split), _NONE)
        return self._read(offsets[0]) if len(offsets) else None

    def last(self, event: str, split: str = "") -> Event | None:
        """The last event of a kind, taken or not."""
        offsets = self._offsets.get((event, split), _NONE)
        return self._read(offsets[-1]) if len(offsets) else None

    def _torn(self, torn: TornLine) -> None:
        report_torn(self.folder.ledger, torn)

    def _note(self, event: Event, offset: int) -> None:
        kind = kind_of(event)
        self._offsets.setdefault(kind, array("q")).append(offset)
        if kind == ("asked", "search") and event.get("name") is None:
            self.proposed += 1
        if kind == ("asked", "validation"):
            self._validated[event["candidate"]] = event.get("recipe_hash")
        genome = event.get("genome")
        self._lineages = self._lineages or (isinstance(genome, dict) and "lineage" in genome)
        if kind[0] in ("told", "warm"):
            self.with_items += event.get("items") is not None
        if kind[0] == "told":
            number = event.get("candidate")
            if not isinstance(number, int) or not 0 <= number <= 2 * self.events + 2**16:
                raise LedgerError(f"{self.folder.ledger}: a told event is of candidate {number!r}", "as it was written")
            marks = self._told.setdefault(kind[1], bytearray())
            marks.extend(bytes(max(0, number + 1 - len(marks))))
            marks[number] = 1

    def _read(self, offset: int) -> Event:
        self._file.seek(offset)
        return decode(self._file.readline(), str(self.folder.ledger))
