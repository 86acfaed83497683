"""Texts of files: a line each, or JSON lines. The one reader of such files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from evomerge.errors import FitnessError, nearest
from fitness._documents import Document, asked_hash, content_hash

_JSON_LINES = (".jsonl", ".json")
_LARGEST = 1 << 30  # characters
_EXAMPLE = '{"text": "words"}'


@dataclass(frozen=True)
class Line:
    """A line that is not blank.

    Attributes:
        where: for messages: the file and the number.
        row: of JSON lines what it holds, of other files its text as ``text``.
        text: as it stands, without its end.
    """

    where: str
    row: Mapping[str, Any]
    text: str


def check_text_file(file: str, key: str) -> None:
    """Raise `FitnessError` where the file that a key names is not there, with the nearest name beside it."""
    path = Path(file).expanduser()
    if path.is_file():
        return
    if path.is_dir():
        raise FitnessError(f"{key} names {file!r}, which is a folder", "a file of texts")
    folder = path.parent
    beside = [own.name for own in folder.iterdir() if own.is_file() and own.name[0] != "."] if folder.is_dir() else []
    allowed = nearest(path.name, beside) if beside else f"its folder {folder.absolute()} has no files"
    if not folder.is_dir():
        allowed = f"there is no folder {folder}"
    raise FitnessError(f"{key} names {file!r}, which is not there", allowed)


def read_lines(file: str, key: str, most: int | None = None, example: str = _EXAMPLE) -> list[Line]:
    """The lines of a file, blank ones left out.

    Args:
        file: its path; ``.jsonl`` and ``.json`` are JSON lines.
        key: that names it, for messages.
        most: the first so many only.
        example: of a line of JSON lines, for messages.

    Raises:
        FitnessError: there is no such file, it cannot be read, is too large or has no lines, or a line of JSON lines
            is no mapping.
    """
    check_text_file(file, key)
    path, found, left = Path(file).expanduser(), list[Line](), _LARGEST
    try:
        with path.open(encoding="utf-8") as lines:
            for number in count(1):
                line = lines.readline(left + 1)
                left -= len(line)
                if left < 0:
                    most_text = f"{_LARGEST:,} characters"
                    raise FitnessError(f"{key}: {file} has more than {most_text}", "some thousand texts", "split it")
                if not line or (most is not None and len(found) == most):
                    break
                if line.strip():
                    where = f"{key}: {file}, line {number}"
                    text = line.rstrip("\r\n")
                    row = _row(text, where, example) if path.suffix in _JSON_LINES else {"text": text}
                    found.append(Line(where, row, text))
    except (OSError, UnicodeDecodeError) as error:
        raise FitnessError(f"{key}: {file} cannot be read ({error})", "a file of texts in UTF-8") from error
    if not found:
        raise FitnessError(f"{key}: {file} has no texts", "a text on each line")
    return found


def text_of(line: Line, name: str, key: str = "") -> str:
    """The text that a line has by a name.

    Args:
        line: it.
        name: of the text in the rows of JSON lines.
        key: that says which name it is, for messages; empty where nothing does.

    Raises:
        FitnessError: there is none, or it is no text of at least one word.
    """
    if name not in line.row:
        allowed = nearest(name, [str(own) for own in line.row])
        raise FitnessError(f"{line.where} has no key {name!r}", allowed, f"set {key}" if key else "")
    value = line.row[name]
    if not isinstance(value, str) or not value.strip():
        raise FitnessError(f"{line.where}: its {name} is {str(value)[:60]!r}", "a text of at least one word")
    return value


def document_of(line: Line, text: str, answer: str = "") -> Document:
    """What identifies a line, the same whoever reads it.

    Args:
        line: it.
        text: what of it is asked.
        answer: what answers that, if it has one.
    """
    return Document(asked_hash(text, (), answer), content_hash(line.row))


def _row(text: str, where: str, example: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FitnessError(f"{where} is no JSON: {error}", f"lines such as {example}") from error
    if not isinstance(row, Mapping):
        raise FitnessError(f"{where} is no mapping", f"lines such as {example}")
    return row
