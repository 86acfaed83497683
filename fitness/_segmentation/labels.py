"""Which of a model's classes the numbers of a task's masks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError, nearest
from fitness._images.labels import number_named
from fitness._segmentation.sources import Mask, MaskedSource
from fitness._segmentation.terms import SegmentationTerm

NOT_COUNTED = -1


@dataclass(frozen=True)
class Classes:
    """How a task's masks are read for a head.

    Attributes:
        table: from numbers in the masks to the head's classes, `NOT_COUNTED` for pixels that do not count; int64.
        names: of the head's classes.
        background: the class that counts neither in Dice nor in IoU; ``None`` for none.
    """

    table: NDArray[np.int64]
    names: tuple[str, ...]
    background: int | None

    def gold(self, mask: Mask) -> NDArray[np.int64]:
        """The class of every pixel, of the mask's shape."""
        return self.table[mask]


def read_classes(
    term: SegmentationTerm, key: str, source: MaskedSource, id2label: Mapping[Any, Any], *, reduced: bool
) -> Classes:
    """How a task's masks are read for a head.

    Args:
        term: the task.
        key: where it stands in the configuration.
        source: its images.
        id2label: of the head's configuration.
        reduced: whether the model learnt from masks whose 0 is no class and whose other numbers are one too large, as
            image processors with ``do_reduce_labels`` have it; `labels` go before.

    Raises:
        FitnessError: a number that is no class of the model, a class that no mask has, numbers that are ignored and
            leave no two classes, an image of which no pixel counts.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    found = sorted(source.numbers)
    shift = 1 if reduced and not term.labels else 0
    table = np.full(max(found) + 1, NOT_COUNTED, dtype=np.int64)
    for number in term.labels:
        if number not in found:
            raise FitnessError(f"{key}.labels has {number}, which no mask has", nearest(str(number), map(str, found)))
    for number in found:
        if number in term.ignored or (shift and number == 0):
            continue
        wanted = term.labels.get(number, number - shift)
        own = number_named(wanted, names)
        if own is None:
            whose = f"the head of {term.head}" if term.head else "the model"
            where = next(item.image.where for item in source.items if (item.mask == number).any())
            given = f"{key}: the mask of {where} has {number}, and {whose} no class {wanted!r}"
            allowed = nearest(wanted, names.values()) if isinstance(wanted, str) else f"classes 0 to {len(names) - 1}"
            do = f"set {key}.labels={{{number}: NAME OR NUMBER}}, or {key}.ignore=[{number}]"
            raise FitnessError(given, allowed, do)
        table[number] = own
    left, lost = set(table.tolist()) - {NOT_COUNTED}, [number for number in found if number in term.ignored]
    if lost and len(left) < 2:
        only = f"but {names[left.pop()]!r}" if left else "at all"
        do = f"set {key}.labels={{{lost[-1]}: NAME OR NUMBER}} where it is a class, and no ignore"
        raise FitnessError(
            f"{key}: without {lost[-1]}, which is ignored, no mask has a class {only}", "two or more", do
        )
    for item in source.items:
        if (table[item.mask] == NOT_COUNTED).all():
            raise FitnessError(f"{key}: of {item.image.where} no pixel counts", f"classes other than {term.ignored}")
    ground = term.ground
    if ground is not None and ground in found and table[ground] == NOT_COUNTED:
        raise FitnessError(f"{key}.background is {ground}, which is ignored", "a number whose pixels count")
    background = None
    if ground is not None:
        background = (
            int(table[ground]) if ground in found else number_named(term.labels.get(ground, ground - shift), names)
        )
        if background is None:
            raise FitnessError(f"{key}.background is {ground}", f"classes 0 to {len(names) - 1}")
    return Classes(table, tuple(names[number] for number in sorted(names)), background)
