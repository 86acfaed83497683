"""Texts from files, which statistics of data are made on."""

from __future__ import annotations

from evomerge.errors import FitnessError
from evomerge.protocols import CalibrationItem
from fitness._calibration_files import FileItems
from fitness._documents import Document
from fitness._text_files import Line, document_of, read_lines, text_of


class TextItems(FileItems[tuple[CalibrationItem, Document], CalibrationItem]):
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

    example = "texts.jsonl"

    def _entries(self, file: str) -> list[tuple[CalibrationItem, Document]]:
        return [_item(line, file) for line in read_lines(file, "files")]

    def _item(self, entry: tuple[CalibrationItem, Document]) -> CalibrationItem:
        return entry[0]

    def _document(self, entry: tuple[CalibrationItem, Document]) -> Document:
        return entry[1]


def _item(line: Line, file: str) -> tuple[CalibrationItem, Document]:
    if "answer" not in line.row:
        text = text_of(line, "text")
        return CalibrationItem(text, file=file), document_of(line, text)
    text, answer = line.row.get("text", ""), line.row["answer"]
    if not isinstance(text, str) or not isinstance(answer, str) or not (text + answer).strip():
        raise FitnessError(f"{line.where} has no text", 'lines such as {"text": "...", "answer": "..."}')
    document = document_of(line, text, answer)
    between = "" if not answer or text[-1:].isspace() or answer[0].isspace() else " "
    return CalibrationItem(text, between + answer if answer else "", file), document
