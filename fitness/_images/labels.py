"""Which of a model's classes a class of the files is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import FitnessError, nearest
from fitness._images.terms import ImageTerm


def class_numbers(term: ImageTerm, classes: Sequence[str], id2label: Mapping[Any, Any]) -> dict[str, int]:
    """The model's number of each of a task's classes.

    A class is the one that ``labels`` says; else that of its name; else, where it is a number, that number; else that
    of its name with other capitals, or spaces for ``_`` and ``-``, where only one is.

    Args:
        term: the task.
        classes: of its files.
        id2label: of the model's configuration.

    Raises:
        FitnessError: a class that the model does not have, or two that are one to it.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    for own in term.labels:
        if own not in classes:
            raise FitnessError(f"tasks.{term.name}.labels has {own!r}, a class of no image", nearest(own, classes))
    found: dict[str, int] = {}
    for own in classes:
        number = _number(term.labels.get(own, own), names)
        if number is None:
            given = f"tasks.{term.name}: the model has no class {term.labels.get(own, own)!r}"
            do = f"set tasks.{term.name}.labels={{{own}: NAME OR NUMBER}}"
            raise FitnessError(given, nearest(str(own), names.values()), do)
        found[own] = number
    by_number: dict[int, str] = {}
    for own, number in found.items():
        if number in by_number:
            given = (
                f"tasks.{term.name}: classes {by_number[number]!r} and {own!r} are both {names[number]!r} to the model"
            )
            raise FitnessError(given, "a class of the model for each", f"see tasks.{term.name}.labels")
        by_number[number] = own
    return found


def _number(wanted: str | int, names: Mapping[int, str]) -> int | None:
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
