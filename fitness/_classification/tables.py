"""Labelled texts of files: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import FitnessError, nearest, reason_of
from fitness._classification.metric_terms import CORRELATIONS, MATTHEWS
from fitness._classification.terms import SplitTerm, TaskTerm
from fitness._documents import Document, asked_hash, content_hash
from fitness._text_files import check_text_file, read_lines

_MOST = 10_000_000


@dataclass(frozen=True)
class Table:
    """The items of a task.

    Attributes:
        texts: what is read.
        pairs: the second text of each; ``None`` for single texts.
        labels: as in the file: texts, whole numbers, or numbers of a regression.
        documents: what identifies each.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...]
    documents: tuple[Document, ...]


def read_table(term: TaskTerm, split: SplitTerm) -> Table:
    """The items of a task's file that are in its part.

    Raises:
        FitnessError: the file is not there or cannot be read, lacks a column or holds another kind of value; no item is
            left.
    """
    key = f"tasks.{term.name}.file"
    texts, pairs, labels, documents = list[str](), list[str](), list[Any](), list[Document]()
    seen, is_whole = set[str](), True  # labels of the whole file: a part may well lack one
    for where, row in read_rows(term.file, key):
        text = text_cell(row, term.text, where, f"tasks.{term.name}.text")
        pair = text_cell(row, term.pair, where, f"tasks.{term.name}.pair") if term.pair else ""
        label = _label(row, term, where)
        seen.add(str(label))
        if not in_part(f"{text}\n{pair}", split):
            continue
        texts.append(text)
        pairs.append(pair)
        labels.append(label)
        content = content_hash({str(name): value for name, value in row.items()})
        documents.append(Document(asked_hash(f"{text}\n{pair}", (), str(label)), content))
        if len(texts) == term.limit:
            is_whole = False
            break
    if is_whole and texts:
        _check_translated(term, seen)
    if not texts:
        what = f"no items in part {split.part}" if split.part else "no items"
        raise FitnessError(f"{key}: {term.file} has {what}", "at least one", "see split and part" if split.part else "")
    if any(metric.name in (*CORRELATIONS, MATTHEWS) for metric in term.metrics):
        translated = dict(term.labels)
        seen_by_head = labels if term.is_numeric else [translated.get(str(own), str(own)) for own in labels]
        require_several(seen_by_head, f"{key}: {term.file}")
    return Table(tuple(texts), tuple(pairs) if term.pair else None, tuple(labels), tuple(documents))


def read_rows(file: str, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, with where each stands."""
    path = Path(file).expanduser()
    check_text_file(file, key)
    if path.suffix == ".parquet":
        yield from _parquet(path, file, key)
    elif path.suffix in (".csv", ".tsv"):
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
                for number, row in enumerate(reader, 1):
                    if None in row or None in row.values():
                        raise FitnessError(
                            f"{key}: {file}, row {number} has another number of cells than the first line names",
                            "the same number in every row",
                        )
                    yield f"{key}: {file}, row {number}", row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise FitnessError(
                f"{key}: {file} cannot be read ({error})", "CSV in UTF-8 with names of columns"
            ) from error
    elif path.suffix in (".jsonl", ".json"):
        for line in read_lines(file, key, example='{"text": "words", "label": 0}'):
            yield line.where, line.row
    else:
        raise FitnessError(f"{key} names {file!r}", "a file .jsonl, .csv, .tsv or .parquet")


def _parquet(path: Path, file: str, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from pyarrow import parquet

    try:
        if parquet.read_metadata(path).num_rows > _MOST:
            raise FitnessError(f"{key}: {file} has too many rows", f"at most {_MOST:,}")
        rows = parquet.read_table(path).to_pylist()
    except FitnessError:
        raise
    except Exception as error:  # pyarrow raises its own errors
        raise FitnessError(f"{key}: {file} cannot be read ({reason_of(error)})", "a Parquet file") from error
    for number, row in enumerate(rows, 1):
        yield f"{key}: {file}, row {number}", row


def _check_translated(term: TaskTerm, seen: Set[str]) -> None:
    """Raise `FitnessError` where ``labels`` translates one that no row has: a slip, which would do nothing."""
    for own, _ in term.labels:
        if own not in seen:
            raise FitnessError(
                f"tasks.{term.name}.labels has {own!r}, a label of no row of {term.file}", nearest(own, sorted(seen))
            )


def cell_of(row: Mapping[str, Any], name: str, where: str, key: str) -> Any:
    """What a row has in a column; `FitnessError`, naming the key that says which, where it has none of the name."""
    if name not in row:
        raise FitnessError(f"{where} has no {name!r}", nearest(name, [str(own) for own in row]), f"set {key}")
    return row[name]


def text_cell(row: Mapping[str, Any], name: str, where: str, key: str) -> str:
    """The text that a row has in a column; `FitnessError` where it is none of at least one word."""
    value = cell_of(row, name, where, key)
    if not isinstance(value, str) or not value.strip():
        raise FitnessError(f"{where}: its {name} is {str(value)[:60]!r}", "a text of at least one word")
    return value


def _label(row: Mapping[str, Any], term: TaskTerm, where: str) -> Any:
    """A text or a whole number of classes; a finite number of a regression."""
    value = cell_of(row, term.label, where, f"tasks.{term.name}.label")
    if term.is_numeric:
        return number_of(value, where, term.label)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # as tables have whole numbers with gaps
        value = int(value)
    if not isinstance(value, int | str) or (isinstance(value, str) and not value.strip()):
        raise FitnessError(f"{where}: its {term.label} is {str(value)[:60]!r}", "a label: a text or a whole number")
    return value


def number_of(value: Any, where: str, name: str) -> float:
    """A finite number that a row has in a column, or `FitnessError`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise FitnessError(f"{where}: its {name} is {str(value)[:60]!r}", "a finite number")
    return number


def require_several(labels: Sequence[float] | Sequence[str], where: str) -> None:
    """Raise `FitnessError` where all labels are one, of which no correlation is defined: all models would tie.

    Args:
        labels: of a task's items, numbers or classes.
        where: the key and the file, for the message.
    """
    if len(set(labels)) < 2:
        shown = repr(labels[0]) if isinstance(labels[0], str) else f"{labels[0]:g}"
        raise FitnessError(
            f"{where} has {shown} for a label in every row that counts",
            "two different ones or more: nothing correlates with a constant",
            "check the column, and limit and part",
        )


def in_part(text: str, split: SplitTerm) -> bool:
    """Whether what is called so, or holds so, is in the part that counts."""
    if split.part is None:
        return True
    place = int(hashlib.sha256(f"{split.seed}\n{text}".encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13
    if place < split.held_out:
        return split.part == "held_out"
    return split.part == ("validation" if place < split.held_out + split.validation else "search")


def class_numbers(term: TaskTerm, labels: Sequence[Any], id2label: Mapping[Any, Any]) -> list[int]:
    """The numbers of the classes that a file's labels name.

    A text is a label of the model, after `TaskTerm.labels`, or a whole number in digits; a number is that of a class.

    Args:
        term: the task.
        labels: of its items.
        id2label: of the model's configuration.

    Raises:
        FitnessError: a label that the model does not have.
    """
    names = {str(name): int(number) for number, name in id2label.items()}
    other = dict(term.labels)
    known: dict[Any, int] = {}
    for label in dict.fromkeys(labels):
        text = other.get(str(label), label)
        if isinstance(text, str) and text in names:
            known[label] = names[text]
        elif str(text).isdecimal() and int(text) < len(names):
            known[label] = int(text)
        else:
            whose = f" of {term.head}" if term.head else ""
            if text is not label:
                raise FitnessError(
                    f"tasks.{term.name}.labels says that {str(label)[:60]!r} is {str(text)[:60]!r}, which the "
                    f"model{whose} does not have",
                    nearest(str(text), names) if names else "a model with id2label in config.json",
                )
            given = f"tasks.{term.name}: {term.file} has the label {str(text)[:60]!r}"
            raise FitnessError(
                f"{given}, which the model{whose} does not have",
                f"its id2label has {', '.join(list(names)[:20])}" if names else "a model with id2label in config.json",
                f"say what it is there with labels: {{{str(label)[:30]}: {next(iter(names), '...')}}} in tasks",
            )
    return [known[label] for label in labels]


def require_kind(term: TaskTerm, outputs: int) -> None:
    """Raise `FitnessError` where a task of numbers meets a model of classes, or the other way round.

    Args:
        term: the task.
        outputs: of the model's head.
    """
    if term.is_numeric != (outputs == 1):
        kind = "numbers: one output" if term.is_numeric else "classes: two outputs or more"
        raise FitnessError(
            f"tasks.{term.name}.metrics has {term.metrics[0].name}, and the head {term.head or 'of the model'} has "
            f"{outputs} outputs",
            f"{term.metrics[0].name} is of {kind}",
        )
