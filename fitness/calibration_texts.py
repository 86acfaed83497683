"""Texts from files, which statistics of data are made on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, FitnessError
from evomerge.protocols import CalibrationItem
from fitness._documents import Document, asked_hash, by_model, check_draw, content_hash, drawn

_LARGEST = 1 << 30  # bytes of a file


class TextItems:
    """Items of files: JSON lines with a ``text`` and perhaps an ``answer``, or plain text, a line each.

    Of an item with an answer the likelihood of the answer counts, of others that of all. A space is put between the
    two, unless there is one.

    Args:
        files: paths, for all models; or a mapping of models to theirs.
        items: of each model; drawn from all of its files where these have more.
        seed: of the draw.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(self, files: list[str] | dict[str, Any], *, items: int = 256, seed: int = 0) -> None:
        check_draw(items, seed)
        if not files:
            raise ConfigError("files is empty", "at least one file", "for example files=[texts.jsonl]")
        self._files, self._items, self._seed = files, items, seed
        self._read: dict[str, list[tuple[CalibrationItem, Document]]] = {}
        self._given: dict[str, list[Document]] = {}

    def check(self) -> None:
        """`FitnessError` for a file that cannot be read."""
        named = self._files.values() if isinstance(self._files, dict) else [self._files]
        for each in named:
            for file in [each] if isinstance(each, str) else each:
                self._of_file(str(file))

    def items(self, model: str) -> Sequence[CalibrationItem]:
        """The items of a model."""
        found = [pair for file in by_model(self._files, model, "files") for pair in self._of_file(file)]
        if not found:
            raise FitnessError(f"the files of model {model!r} hold no text", "at least one")
        chosen = drawn(found, self._items, self._seed)
        self._given[model] = [document for _, document in chosen]
        return [item for item, _ in chosen]

    def documents(self) -> Sequence[tuple[str, str]]:
        """Hashes of the items of all models so far: of text and answer, and of their line."""
        return [document for own in self._given.values() for document in own]

    def _of_file(self, file: str) -> list[tuple[CalibrationItem, Document]]:
        if file not in self._read:
            self._read[file] = list(_items_of(Path(file)))
        return self._read[file]


def _items_of(path: Path) -> list[tuple[CalibrationItem, Document]]:
    try:
        if path.stat().st_size > _LARGEST:
            raise FitnessError(f"{path} has more than {_LARGEST:,} bytes", "files of some thousand texts", "split it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FitnessError(f"{path} cannot be read ({error})", "a file of texts in UTF-8") from error
    plain = path.suffix not in (".jsonl", ".json")
    return [_item(path, number, line, plain) for number, line in enumerate(lines, 1) if line.strip()]


def _item(path: Path, number: int, line: str, plain: bool) -> tuple[CalibrationItem, Document]:
    if plain:
        return CalibrationItem(line), Document(asked_hash(line, (), ""), content_hash(line))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FitnessError(f"{path}, line {number}, is no JSON ({error})", 'lines such as {"text": "..."}') from error
    text, answer = (row.get("text"), row.get("answer", "")) if isinstance(row, dict) else (None, "")
    if not isinstance(text, str) or not isinstance(answer, str) or not (text + answer).strip():
        raise FitnessError(f"{path}, line {number}, has no text", 'lines such as {"text": "...", "answer": "..."}')
    document = Document(asked_hash(text, (), answer), content_hash(row))
    between = "" if not answer or text[-1:].isspace() or answer[0].isspace() else " "
    return CalibrationItem(text, between + answer if answer else ""), document
