"""Some of a fitness's items: which places, and their values among those of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest


def places_of(part: Part | None, counts: Mapping[str, int]) -> dict[str, list[int] | None]:
    """By task the places of a part, in order; ``None`` for all.

    Args:
        part: some of every task.
        counts: items of each task.

    Raises:
        FitnessError: a task that there is not, no item of one, or a place twice or beyond its items.
    """
    if part is None:
        return dict.fromkeys(counts)
    for task in part:
        if task not in counts:
            raise FitnessError(f"the part has items of {task!r}", nearest(task, counts))
    found: dict[str, list[int] | None] = {}
    for task, count in counts.items():
        own = sorted(part.get(task, ()))
        if not own or own[0] < 0 or own[-1] >= count or len(set(own)) < len(own):
            raise FitnessError(f"the part of {task} is {own[:5]}", f"places from 0 to {count - 1}, each once")
        found[task] = own
    return found


def among(values: NDArray[np.float64], places: Sequence[int], count: int) -> NDArray[np.float64]:
    """Values of the items at some places among all, NaN elsewhere."""
    found = np.full(count, np.nan)
    found[list(places)] = values
    return found
