"""The texts of a file: a line each, or the values of a key of JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import FitnessError, nearest
from fitness._unlabelled.terms import TextTerm

_JSON_LINES = (".jsonl", ".json")


def check_file(term: TextTerm) -> None:
    """Raise `FitnessError` where the file that a term names is not there."""
    if term.file and not Path(term.file).expanduser().is_file():
        folder = Path(term.file).expanduser().parent
        beside = (
            [path.name for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
            if folder.is_dir()
            else []
        )
        allowed = nearest(Path(term.file).name, beside) if beside else f"there is no folder {folder}"
        raise FitnessError(f"texts.{term.name}.file is {term.file!r}, which is not there", allowed)


def read_file(term: TextTerm) -> list[str]:
    """The texts of a term's file, blank lines left out, up to its limit.

    Raises:
        FitnessError: there is no such file, it cannot be read or has no texts, a line is no JSON or lacks the key.
    """
    check_file(term)
    path, found = Path(term.file).expanduser(), []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                own = path.suffix in _JSON_LINES
                found.append(_value(line, term, number) if own else line.rstrip("\r\n"))
                if term.limit is not None and len(found) == term.limit:
                    break
    except (OSError, UnicodeDecodeError) as error:
        raise FitnessError(f"texts.{term.name}.file {term.file} cannot be read: {error}", "a file in UTF-8") from error
    if not found:
        raise FitnessError(f"texts.{term.name}.file {term.file} has no texts", "a text on each line")
    return found


def _value(line: str, term: TextTerm, number: int) -> str:
    where = f"texts.{term.name}.file {term.file}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FitnessError(f"{where} is no JSON: {error}", "a mapping on each line") from error
    if not isinstance(row, Mapping):
        raise FitnessError(f"{where} is no mapping", "one on each line, such as {'text': 'words'}")
    if term.key not in row:
        allowed = nearest(term.key, [str(name) for name in row])
        raise FitnessError(f"{where} has no key {term.key!r}", allowed, f"set texts.{term.name}.key")
    value = row[term.key]
    if not isinstance(value, str) or not value.strip():
        raise FitnessError(f"{where}: its {term.key} is {str(value)[:60]!r}", "a text of at least one word")
    return value
