"""Texts from files, which statistics of data are made on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.errors import ConfigError, FitnessError
from evomerge.protocols import CalibrationItem
from fitness._documents import Document, asked_hash, by_model, check_draw, content_hash, drawn
from fitness._text_files import Line, read_lines, text_of


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
        chosen = drawn(found, self._items, self._seed)
        self._given[model] = [document for _, document in chosen]
        return [item for item, _ in chosen]

    def documents(self) -> Sequence[tuple[str, str]]:
        """Hashes of the items of all models so far: of text and answer, and of their line."""
        return [document for own in self._given.values() for document in own]

    def _of_file(self, file: str) -> list[tuple[CalibrationItem, Document]]:
        if file not in self._read:
            self._read[file] = [_item(line) for line in read_lines(file, "files")]
        return self._read[file]


def _item(line: Line) -> tuple[CalibrationItem, Document]:
    if "answer" not in line.row:
        text = text_of(line, "text")
        return CalibrationItem(text), Document(asked_hash(text, (), ""), content_hash(line.row))
    text, answer = line.row.get("text", ""), line.row["answer"]
    if not isinstance(text, str) or not isinstance(answer, str) or not (text + answer).strip():
        raise FitnessError(f"{line.where} has no text", 'lines such as {"text": "...", "answer": "..."}')
    document = Document(asked_hash(text, (), answer), content_hash(line.row))
    between = "" if not answer or text[-1:].isspace() or answer[0].isspace() else " "
    return CalibrationItem(text, between + answer if answer else ""), document
