"""The Pareto archive: what no other candidate beats in every objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.protocols import Objective


class ParetoArchive:
    """The candidates that no other dominates, in the order in which they came in.

    A candidate dominates another when it is at least as good in every objective and better in one. Of two that are
    equal in all, the earlier stays.

    Args:
        objectives: names and directions.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self._ids: list[int] = []
        self._gains: NDArray[np.float64] = np.empty((0, len(objectives)))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def add(self, candidate: int, values: Mapping[str, float]) -> bool:
        """Take a candidate in unless it is dominated, and drop those that it dominates; returns whether it came in.

        Values that are not finite, or missing, are never taken in.
        """
        gains = self._gain(values)
        if not np.isfinite(gains).all() or (self._gains >= gains).all(axis=1).any():
            return False
        stays: NDArray[np.bool_] = np.any(self._gains > gains, axis=1)
        self._ids = [candidate for candidate, kept in zip(self._ids, stays, strict=True) if kept]
        self._ids.append(candidate)
        self._gains = np.vstack([self._gains[stays], gains])
        return True

    def values(self) -> dict[int, dict[str, float]]:
        """The objectives of every candidate of the front, in the user's own directions."""
        names = [objective.name for objective in self._objectives]
        signs = np.array([objective.gain(1.0) for objective in self._objectives])
        rows = (self._gains * signs).tolist()
        return {i: dict(zip(names, row, strict=True)) for i, row in zip(self._ids, rows, strict=True)}

    def knee(self) -> int:
        """The candidate that is nearest to the ideal, every objective scaled to the front's own range.

        Of equals the earliest. The front must not be empty.
        """
        low, high = self._gains.min(axis=0), self._gains.max(axis=0)
        missed = (high - self._gains) / np.where(high > low, high - low, 1.0)
        return self._ids[int(np.argmin(np.square(missed).sum(axis=1)))]

    def extreme(self, name: str) -> int:
        """The candidate that is best in one objective; of equals the one that is better in the others, in order."""
        order = sorted(range(len(self._objectives)), key=lambda k: self._objectives[k].name != name)
        rows = self._gains[:, order].tolist()
        return self._ids[max(range(len(rows)), key=lambda i: (rows[i], -i))]

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """The volume that the front dominates above a reference point, in the product of the objectives' units.

        Args:
            reference: a value for every objective; candidates that do not beat it in all objectives count nothing.
        """
        point = self._gain(reference)
        above = self._gains[(self._gains > point).all(axis=1)]
        return _volume(above - point) if len(above) else 0.0

    def _gain(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([o.gain(values.get(o.name, np.nan)) for o in self._objectives], dtype=np.float64)


def _volume(sides: NDArray[np.float64]) -> float:
    """The volume of the union of boxes that share a corner: sliced along their last sides.

    Args:
        sides: a row for every box, all above 0.
    """
    sides = sides[np.argsort(-sides[:, -1], kind="stable")]
    heights = sides[:, -1] - np.append(sides[1:, -1], 0.0)
    if sides.shape[1] == 1:
        return float(heights.sum())
    if sides.shape[1] == 2:  # in each slice, the widest of the boxes that reach it
        return float(heights @ np.maximum.accumulate(sides[:, 0]))
    return sum(float(height) * _volume(sides[: k + 1, :-1]) for k, height in enumerate(heights) if height > 0)
