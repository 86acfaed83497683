"""Which of a model's classes a class of the files is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError, nearest
from fitness._images.sources import ImageSource
from fitness._images.terms import ImageTerm


@dataclass(frozen=True)
class Answers:
    """Right answers of a task.

    Attributes:
        places: of the right class among the logits that count, int64 of shape (images,).
        columns: of the head's logits those that count, in order; ``None`` for all.
        names: of the classes that count.
    """

    places: NDArray[np.int64]
    columns: tuple[int, ...] | None
    names: tuple[str, ...]


def right_answers(term: ImageTerm, key: str, source: ImageSource, id2label: Mapping[Any, Any] | None) -> Answers:
    """The right answers of a task's images.

    Args:
        term: the task.
        key: where it stands in the configuration.
        source: its images.
        id2label: of the head's configuration; ``None`` for a head of the task's own classes, in their order.

    Raises:
        FitnessError: as for `class_numbers`.
    """
    names, columns = tuple(source.classes), None
    if id2label is None:
        numbers = {name: number for number, name in enumerate(names)}
    else:
        numbers = class_numbers(term, key, source.classes, id2label)
        names = tuple(str(id2label[number]) for number in sorted(id2label))
        if term.among == "task":
            columns = tuple(sorted(numbers.values()))
            names = tuple(names[number] for number in columns)
            numbers = {name: columns.index(number) for name, number in numbers.items()}
    return Answers(np.array([numbers[item.label] for item in source.items], dtype=np.int64), columns, names)


def class_numbers(term: ImageTerm, key: str, classes: Sequence[str], id2label: Mapping[Any, Any]) -> dict[str, int]:
    """The model's number of each of a task's classes.

    A class is the one that ``labels`` says; else that of its name; else, where it is a number, that number; else that
    of its name with other capitals, or spaces for ``_`` and ``-``, where only one is.

    Args:
        term: the task.
        key: where it stands in the configuration.
        classes: of its files.
        id2label: of the model's configuration.

    Raises:
        FitnessError: a class that the model does not have, or two that are one to it.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    for own in term.labels:
        if own not in classes:
            raise FitnessError(f"{key}.labels has {own!r}, a class of no image", nearest(own, classes))
    found: dict[str, int] = {}
    for own in classes:
        number = number_named(term.labels.get(own, own), names)
        if number is None:
            whose = f"the head of {term.head}" if term.head else "the model"
            given = f"{key}: {whose} has no class {term.labels.get(own, own)!r}"
            do = f"set {key}.labels={{{own}: NAME OR NUMBER}}"
            raise FitnessError(given, nearest(str(own), names.values()), do)
        found[own] = number
    by_number: dict[int, str] = {}
    for own, number in found.items():
        if number in by_number:
            given = f"{key}: classes {by_number[number]!r} and {own!r} are both {names[number]!r} to the model"
            do = f"see {key}.labels; a table with a column of the model's classes joins several"
            raise FitnessError(given, "a class of the model for each", do)
        by_number[number] = own
    return found


def number_named(wanted: str | int, names: Mapping[int, str]) -> int | None:
    """The number of a class that is called so, or has that number; ``None`` for none, or for several that are alike."""
    if isinstance(wanted, int):
        return wanted if wanted in names else None
    exact = [number for number, name in names.items() if name == wanted]
    if exact:
        return exact[0]
    if wanted.isdecimal() and int(wanted) in names:
        return int(wanted)
    alike = [number for number, name in names.items() if _plain(name) == _plain(wanted)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
