"""A search that begins with the evaluations of another run: what was scored there is not scored again."""

from __future__ import annotations

import heapq
import json
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError
from evomerge.genomes.encoding import GenomeLog
from evomerge.protocols import Evaluator
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import evaluation_of
from evomerge.run.ledger_file import decode, report_torn, scan
from evomerge.run.remains import require_ledger
from evomerge.run.responses import read_responses
from evomerge.session.wrapped import WrappedEvaluator

_log = logging.getLogger(__name__)
_NOWHERE = -1


class Source:
    """The scores of another run on its search items, by recipe; where genomes are the models, by genome.

    Memory is a hash and a number for each. Failures are left out: they may have been the machine's.

    Args:
        folder: of that run. It may go on meanwhile; what comes later is not known.

    Attributes:
        events: in its ledger.
        fitness: the fingerprint of its fitness.

    Raises:
        LedgerError: there is no such run, or its ledger is damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.events = offset = 0
        self.fitness: str | None = None
        self._places: dict[str, list[int]] = {}  # of equal candidates, in the order asked
        asked: dict[int, tuple[str, int]] = {}
        for number, line in scan(folder.ledger, lambda torn: report_torn(folder.ledger, torn)):
            event = decode(line, f"{folder.ledger}: line {number}")
            if event["event"] == "started":
                self.fitness = event.get("fitness")
            elif event["event"] in ("asked", "told") and event.get("split") == "search":
                if event["event"] == "asked":
                    key = event.get("recipe_hash") or _key(event.get("genome"))
                    places = self._places.setdefault(key, [])
                    asked[event["candidate"]] = key, len(places)
                    places.append(_NOWHERE)
                elif event.get("status") == "ok" and event["candidate"] in asked:
                    key, number = asked.pop(event["candidate"])
                    self._places[key][number] = offset
            offset += len(line)
            self.events = number
        require_ledger(folder, self.events)
        self._taken: Counter[str] = Counter()
        self._file = folder.ledger.open("rb")

    def __len__(self) -> int:
        return sum(any(place != _NOWHERE for place in places) for places in self._places.values())

    def place(self, candidate: Candidate) -> int | None:
        """Where the evaluation of an equal candidate is, ``None`` for nowhere; of several, one after the other."""
        made = candidate.recipe.hash if candidate.recipe is not None else None
        key = made or _key(GenomeLog().write(0, candidate.genome))
        places, number = self._places.get(key, []), self._taken[key]
        self._taken[key] += 1
        if number < len(places) and places[number] != _NOWHERE:
            return places[number]
        return next((place for place in places if place != _NOWHERE), None)

    def evaluation(self, place: int, candidate: int) -> Evaluation:
        """The evaluation at a place, as that of `candidate`.

        Raises:
            LedgerError: its file of items is missing or damaged.
        """
        self._file.seek(place)
        event = decode(self._file.readline(), str(self.folder.ledger))
        items = {}
        if event.get("items") is not None:
            items = read_items(self.folder, int(event["candidate"]), digest=event["items_hash"])
        answers = read_responses(self.folder, int(event["candidate"]), event.get("split", "search"))
        return replace(evaluation_of(event, items), candidate=candidate, responses=answers)

    def check(self, fingerprint: str) -> None:
        """`EvomergeError` where the fitness is not this one's: scores could not be compared."""
        if self.fitness != fingerprint:
            raise EvomergeError(
                f"from_run: the fitness has fingerprint {fingerprint}, that of {self.folder.path} had {self.fitness}",
                "the same items, prompts, batches, dtype and tokenizer",
                f"begin with search.warm_start=[{self.folder.path}], which scores its best again",
            )

    @property
    def event(self) -> dict[str, Any]:
        """What the ``started`` event says of it."""
        return {"run": str(self.folder.path), "events": self.events, "evaluations": len(self)}

    def close(self) -> None:
        """Close its file."""
        self._file.close()


class ForkedEvaluator(WrappedEvaluator):
    """Hands out the evaluations of another run where it has some, those told first before others.

    Args:
        evaluator: evaluates the rest.
        source: the other run.

    Attributes:
        copied: how many evaluations came from there.
    """

    def __init__(self, evaluator: Evaluator, source: Source) -> None:
        super().__init__(evaluator)
        self._source = source
        self._ready: list[tuple[int, int, Candidate]] = []  # by place in the other ledger
        self.copied = 0

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Look a candidate up, or queue it. What is held out is scored anew."""
        whole = split == "search" and candidate.part is None
        place = self._source.place(candidate) if whole else None
        if place is None:
            self._evaluator.submit(candidate, split)
        else:
            heapq.heappush(self._ready, (place, candidate.id, candidate))

    def collect(self) -> Evaluation:
        """One that was looked up, else one that is made now."""
        while self._ready:
            place, number, candidate = heapq.heappop(self._ready)
            try:
                found = self._source.evaluation(place, number)
            except EvomergeError as error:
                _log.warning("%s; candidate %d is evaluated", error, number)
                self._evaluator.submit(candidate)
                continue
            self.copied += 1
            return found
        return self._evaluator.collect()


def _key(genome: Any) -> str:
    return json.dumps(genome)
