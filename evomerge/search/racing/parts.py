"""Parts of a fitness's items: one order of all items, and what lies between two shares of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.candidate import Part


class ItemOrder:
    """All items in one order, each task's spread evenly over it: every stretch holds its share of every task.

    Where some items are preferred, every other one of a candidate's is the next of these, whoever it is, and those
    between are drawn: a choice alone says nothing of the items that were not chosen, to which models may be unlike.

    Args:
        counts: items of each task.
        seed: of the shuffle.
        preferred: by task its places, those that tell most first; ``None`` for no preference.
    """

    def __init__(
        self, counts: Mapping[str, int], seed: int, preferred: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self._shuffled = {name: rng.permutation(count).tolist() for name, count in counts.items()}
        self._preferred = preferred
        self._mixed: dict[tuple[str, int], list[int]] = {}
        self.total = sum(counts.values())

    def part(self, first: float, last: float, start: float = 0.0) -> Part:
        """The items between two shares of a candidate's, at least one of every task.

        Stretches that meet have no item in common, and those from 0 to 1 are all items, but for tasks with fewer items
        than stretches.

        Args:
            first, last: shares of all items.
            start: share of the drawn items behind which its own begin; from the last one on they begin again.
        """
        found = {}
        for name, places in self._shuffled.items():
            count = len(places)
            at = 0 if self._preferred is not None else start  # of drawn items alone both ends are rounded
            begin = math.floor((at + first) * count + 1e-9)
            end = min(max(math.floor((at + last) * count + 1e-9), begin + 1), begin + count)
            own = places if self._preferred is None else self._mix(name, math.floor(start * count + 1e-9))
            found[name] = tuple(sorted(own[place % count] for place in range(begin, end)))
        return found

    def _mix(self, name: str, start: int) -> list[int]:
        assert self._preferred is not None
        if (name, start) not in self._mixed:
            drawn = self._shuffled[name]
            self._mixed[name, start] = in_turn([*drawn[start:], *drawn[:start]], self._preferred[name])
        return self._mixed[name, start]


def in_turn(drawn: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """One of the drawn, then the next of the chosen, and so on, each place once; both hold all places."""
    sources, taken = (iter(drawn), iter(chosen)), dict[int, None]()
    while len(taken) < len(drawn):
        taken[next(place for place in sources[len(taken) % 2] if place not in taken)] = None
    return list(taken)


def size(part: Part) -> int:
    """How many items a part has."""
    return sum(len(places) for places in part.values())


def join(part: Part, other: Part) -> Part:
    """The items of either."""
    return {name: tuple(sorted({*part.get(name, ()), *other.get(name, ())})) for name in {**part, **other}}
