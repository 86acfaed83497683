"""How many candidates wait for scores, and for whose: from the files of a run, whether or not it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evomerge.run.ratings.folder import RatedCandidate, RatingFolder
from evomerge.run.ratings.rules import RatingRules
from evomerge.run.ratings.sheets import Sheet

_SHOWN = 3


@dataclass(frozen=True)
class Waiting:
    """What raters have done, and what is left for them.

    Attributes:
        rated: candidates that are counted.
        waiting: candidates that wait.
        wanted: scores that one rater would give those.
        raters: how many must have rated a candidate.
        given: scores of those that wait, by rater; of named raters all are here.
        missing: ratings of whole candidates that are still to come.
        problems: what is wrong with files of scores, a line each.
    """

    rated: int
    waiting: int
    wanted: int
    raters: int
    given: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0
    problems: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """In words."""
        if not self.waiting:
            return [f"{_count(self.rated, 'candidate')} rated, none waits"]
        who = [f"{rater}: {given} of {self.wanted} scores" for rater, given in self.given.items()]
        found = [f"{_count(self.waiting, 'candidate waits', 'candidates wait')}, {self.rated} rated", *who]
        if self.missing:
            found.append(f"{_count(self.missing, 'rating')} to come, {self.raters} for each candidate")
        hidden = len(self.problems) - _SHOWN
        return [*found, *self.problems[:_SHOWN], *([f"{hidden} more files with faults"] if hidden > 0 else [])]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def read_waiting(folder: Path) -> Waiting | None:
    """What is left for raters; ``None`` where no search has people rate.

    Args:
        folder: ``rating`` of a run.
    """
    ratings = RatingFolder(folder)
    rules = ratings.rules()
    if not rules:
        return None
    found = ratings.candidates(rules)
    open_ones = [(each, own) for each, own in found if not each.accepted.is_file()]
    first = next(iter(rules.values()))
    given, problems, missing = dict.fromkeys(first.names, 0), [], 0
    for candidate, own in open_ones:
        sheets = candidate.sheets(own)
        for sheet in sheets:
            if sheet.problem:
                problems.append(problem_line(candidate.name, sheet))
            else:
                given[sheet.rater] = given.get(sheet.rater, 0) + len(sheet.scores)
        missing += max(0, own.raters - sum(sheet.complete(own) for sheet in sheets))
    wanted = sum(own.wanted for _, own in open_ones)
    return Waiting(len(found) - len(open_ones), len(open_ones), wanted, first.raters, given, missing, tuple(problems))


def left_for(folder: RatingFolder, rater: str) -> list[tuple[RatedCandidate, RatingRules, Sheet | None]]:
    """Candidates that a rater has not scored in full: what is asked, and the rater's file where there is one."""
    found = []
    for candidate, rules in folder.candidates(folder.rules()):
        if candidate.accepted.is_file():
            continue
        own = next((sheet for sheet in candidate.sheets(rules) if sheet.rater == rater), None)
        if own is None or not own.complete(rules):
            found.append((candidate, rules, own))
    return found


def problem_line(candidate: str, sheet: Sheet) -> str:
    """What is wrong with a file of scores, with its place."""
    return f"{candidate}/{sheet.file}: {sheet.problem}"


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
