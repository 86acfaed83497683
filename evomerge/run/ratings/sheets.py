"""Files of scores, which people edit and other programs write: read with patience, for they may be half written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from evomerge.run.ratings.rules import ANYONE, RATER, RatingRules
from evomerge.utils.files import read_bounded

MOST_BYTES = 2**26
_NAME = re.compile(rf"scores(?:-(?P<rater>{RATER.pattern}))?\.(?:csv|jsonl)")
_LEFT_BY_EDITORS = ("~", ".tmp", ".bak", ".swp", ".part")


@dataclass(frozen=True)
class Sheet:
    """One rater's scores of one candidate.

    Attributes:
        rater: who.
        file: its name.
        scores: by item; of a candidate as a whole the item is 0.
        problem: what is wrong with the file, in a line; empty where nothing is.
        stamp: changes whenever the file does.
    """

    rater: str
    file: str
    scores: Mapping[int, float] = field(default_factory=dict)
    problem: str = ""
    stamp: tuple[int, ...] = ()

    def complete(self, rules: RatingRules) -> bool:
        """Whether nothing is missing, and nothing wrong."""
        return not self.problem and len(self.scores) == rules.wanted


class _WrongSheetError(Exception):
    """What is wrong with a file of scores, in a line."""


def read_sheets(folder: Path, rules: RatingRules) -> list[Sheet]:
    """The files of scores in a candidate's folder, by name. What is no such file is left alone.

    Never raises for what a file holds: `Sheet.problem` says it.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("scores"))
    except OSError:
        return []
    found: dict[str, Sheet] = {}
    for name in names:
        if name.endswith(_LEFT_BY_EDITORS):
            continue
        sheet = _read(folder / name, rules)
        found[sheet.rater] = _one_of(found[sheet.rater], sheet) if sheet.rater in found else sheet
    return list(found.values())


def _one_of(first: Sheet, second: Sheet) -> Sheet:
    """The one that counts of two files of a rater: a form that nobody has filled in counts for nothing."""
    stamp = (*first.stamp, *second.stamp)
    for own, other in ((first, second), (second, first)):
        if not other.problem and not other.scores:
            return replace(own, stamp=stamp)
    both = f"{first.file} and {second.file} are both of {first.rater}: one file for each rater"
    return Sheet(second.rater, second.file, problem=both, stamp=stamp)


def _read(path: Path, rules: RatingRules) -> Sheet:
    matched = _NAME.fullmatch(path.name)
    rater = (matched["rater"] or ANYONE) if matched else path.name
    stamp: tuple[int, ...] = ()
    try:
        status = path.lstat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        if matched is None:
            raise _WrongSheetError("a file of scores is called scores-NAME.csv or scores-NAME.jsonl")
        if rules.names and rater not in rules.names:
            raise _WrongSheetError(f"{rater} is none of the raters {', '.join(rules.names)}")
        text = read_bounded(path, MOST_BYTES, follow=False).decode("utf-8-sig")
        entries = _json_lines(text) if path.suffix == ".jsonl" else _csv_rows(text, rules)
        scores = _of_all(entries, rules) if rules.by == "candidate" else _by_item(entries, rules)
    except OSError as error:
        return Sheet(rater, path.name, problem=f"it cannot be read: {error.strerror}", stamp=stamp)
    except UnicodeDecodeError:
        return Sheet(rater, path.name, problem="it is no text in UTF-8", stamp=stamp)
    except _WrongSheetError as wrong:
        return Sheet(rater, path.name, problem=str(wrong), stamp=stamp)
    return Sheet(rater, path.name, scores, stamp=stamp)


_Entry = tuple[str, object, object]
"""Where it stands, the item and the score, as they are written; ``None`` where there is none."""


def _csv_rows(text: str, rules: RatingRules) -> Iterator[_Entry]:
    first = text.partition("\n")[0].lower()
    comma = next((sign for sign in ",;\t" if "score" in [cell.strip(' "\r') for cell in first.split(sign)]), None)
    columns = "score" if rules.by == "candidate" else "item and score"
    if comma is None:
        raise _WrongSheetError(f"its first line names no column score; it should name {columns}")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows)]
        if rules.by != "candidate" and "item" not in names:
            raise _WrongSheetError(f"its first line names no column item; it should name {columns}")
        for row in rows:
            if any(cell.strip() for cell in row):
                values = dict(zip(names, row, strict=False))
                score = values.get("score", "").strip()
                score = score if comma == "," else score.replace(",", ".")  # as spreadsheets of many languages write
                yield f"line {rows.line_num}", values.get("item", "").strip() or None, score or None
    except csv.Error as error:
        raise _WrongSheetError(f"line {rows.line_num}: {error}") from error


def _json_lines(text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise _WrongSheetError(f"line {number} is no JSON") from None
        if not isinstance(row, Mapping) or "score" not in row:
            raise _WrongSheetError(f'line {number} is no mapping with a score, such as {{"item": 0, "score": 3}}')
        yield f"line {number}", row.get("item"), row["score"]


def _by_item(entries: Iterator[_Entry], rules: RatingRules) -> dict[int, float]:
    found: dict[int, float] = {}
    for where, given, score in entries:
        if score is None:
            continue
        item = _whole(given)
        if item is None or not 0 <= item < rules.items:
            raise _WrongSheetError(f"{where}: item is {_shown(given)}, a number from 0 to {rules.items - 1}")
        value = _score(score, where, rules)
        if found.setdefault(item, value) != value:
            raise _WrongSheetError(f"{where}: item {item} has two scores, {found[item]:g} and {value:g}")
    return found


def _of_all(entries: Iterator[_Entry], rules: RatingRules) -> dict[int, float]:
    found = [(where, _score(score, where, rules)) for where, _, score in entries if score is not None]
    for where, value in found:
        if value != found[0][1]:
            raise _WrongSheetError(f"{where}: there is a second score; the candidate is given one as a whole")
    return {0: found[0][1]} if found else {}


def _score(given: object, where: str, rules: RatingRules) -> float:
    try:
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise ValueError
        value = float(given)
    except (ValueError, OverflowError):
        raise _WrongSheetError(f"{where}: score is {_shown(given)}, {rules.scale}") from None
    if rules.refusal(value):
        raise _WrongSheetError(f"{where}: score is {value:g}, {rules.scale}")
    return value


def _whole(given: object) -> int | None:
    try:
        value = float(given) if isinstance(given, str) else given
    except ValueError:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        return None
    return int(value) if value == int(value) else None


def _shown(given: object) -> str:
    return "missing" if given is None else repr(given)[:40]
