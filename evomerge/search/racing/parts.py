"""Parts of a fitness's items: one order of all items, and what lies between two shares of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.candidate import Part


class ItemOrder:
    """All items in one order, each task's spread evenly over it: every stretch holds its share of every task.

    Args:
        counts: items of each task.
        seed: of the shuffle.
        preferred: by task its places, those to begin with first; shuffled where that is ``None``.
    """

    def __init__(
        self, counts: Mapping[str, int], seed: int, preferred: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        shuffled = {name: rng.permutation(count).tolist() for name, count in counts.items()}
        self._places = {name: list((preferred or shuffled)[name]) for name in counts}
        self.total = sum(counts.values())

    def part(self, first: float, last: float) -> Part:
        """The items between two shares of the order, at least one of every task; beyond 1 it begins again.

        Stretches that meet have no item in common, and those from 0 to 1 are all items, but for tasks with fewer items
        than stretches.
        """
        found = {}
        for name, places in self._places.items():
            count = len(places)
            begin = math.floor(first * count + 1e-9)
            end = min(max(math.floor(last * count + 1e-9), begin + 1), begin + count)
            found[name] = tuple(sorted(places[place % count] for place in range(begin, end)))
        return found


def size(part: Part) -> int:
    """How many items a part has."""
    return sum(len(places) for places in part.values())


def join(part: Part, other: Part) -> Part:
    """The items of either."""
    return {name: tuple(sorted({*part.get(name, ()), *other.get(name, ())})) for name in {**part, **other}}
