"""What a search optimises: objectives, the front of those that no other beats, and one number from several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest


@dataclass(frozen=True)
class Objective:
    """One named number with a direction.

    >>> Objective("accuracy").gain(0.8), Objective("length", "minimize").gain(120.0)
    (0.8, -120.0)
    """

    name: str
    direction: Literal["maximize", "minimize"] = "maximize"

    def gain(self, value: float) -> float:
        """`value` with its sign set so that larger is better."""
        return value if self.direction == "maximize" else -value


@dataclass(frozen=True)
class MetricShare:
    """What one metric of one task counts in an objective, as a fitness declares it.

    Attributes:
        metric: ``task/metric``.
        weight: its share of the objective, above 0; only ratios matter.
        direction: which values of it are better.
        objective: which one it counts in; empty where there is only one.
        transform: ``log`` where its logarithm counts, else empty.
    """

    metric: str
    weight: float
    direction: Literal["maximize", "minimize"] = "maximize"
    objective: str = ""
    transform: Literal["", "log"] = ""

    def counted(self, value: float) -> float:
        """What counts of a value of the metric; NaN for a logarithm that there is not."""
        if not self.transform:
            return value
        return math.log(value) if value > 0 else math.nan

    def to_json(self) -> list[object]:
        """As a ledger keeps it."""
        return [self.metric, self.weight, self.direction, self.objective, self.transform]

    @staticmethod
    def from_json(entry: object) -> MetricShare | None:
        """What `to_json` wrote; ``None`` for anything else."""
        if not (isinstance(entry, list) and len(entry) == 5):
            return None
        metric, weight, direction, objective, transform = entry
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            return None
        if direction not in ("maximize", "minimize") or transform not in ("", "log"):
            return None
        return MetricShare(str(metric), float(weight), direction, str(objective), transform)


class ParetoArchive:
    """The candidates that no other dominates, in the order in which they came in.

    A candidate dominates another when it is at least as good in every objective and better in one. Of two that are
    equal in all, the earlier stays.

    Args:
        objectives: names and directions.

    >>> archive = ParetoArchive([Objective("accuracy"), Objective("length", "minimize")])
    >>> archive.add(0, {"accuracy": 0.8, "length": 120}), archive.add(1, {"accuracy": 0.6, "length": 40})
    (True, True)
    >>> archive.add(2, {"accuracy": 0.5, "length": 50}), list(archive)
    (False, [0, 1])
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


SCALARISATIONS = ("weighted", "tchebycheff")

_UTOPIA = 2.0  # the ideal: as far above the best baseline as the worst lies below it
_AUGMENTATION = 1e-3


@dataclass(frozen=True)
class Scalarisation:
    """Larger is better, whatever the directions of the objectives.

    With the gains ``u`` in units of the baselines' range (0 the worst baseline, 1 the best) and weights ``w`` that sum
    to 1:

    - ``weighted``: ``sum_k w_k u_k``. Reaches the convex parts of a front only.
    - ``tchebycheff``: ``-max_k w_k (2 - u_k) + 0.001 sum_k w_k u_k``, the augmented Tchebycheff distance (Steuer and
      Choo, 1983) to a fixed ideal at 2, that is as far above the best baseline as the worst lies below it. Reaches
      every part of a front. The ideal does not move, so that values of a search can be compared with each other.

    Attributes:
        objectives: in order.
        method: ``weighted`` or ``tchebycheff``.
        weights: of the objectives, summing to 1.
        low, span: gain of the worst baseline, and the range of the baselines, by objective; 0 and 1 where values are
            taken as they are.
    """

    objectives: tuple[Objective, ...]
    method: str
    weights: tuple[float, ...]
    low: tuple[float, ...]
    span: tuple[float, ...]

    @staticmethod
    def of(
        objectives: Sequence[Objective],
        method: str,
        weights: Mapping[str, float],
        baselines: Iterable[Mapping[str, float]],
    ) -> Scalarisation:
        """With the ranges of the baselines' scores; without baselines, values are taken as they are.

        Args:
            weights: by objective, 1 where none is given.

        Raises:
            ConfigError: an unknown method or objective, or weights that are negative or all zero.
        """
        if method not in SCALARISATIONS:
            raise ConfigError(f"scalarisation {method!r}", nearest(method, SCALARISATIONS))
        names = [objective.name for objective in objectives]
        for name, value in weights.items():
            if name not in names:
                raise ConfigError(f"search.weights has {name!r}", nearest(name, names))
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"search.weights.{name} is {value}", "0 or more: directions are the objectives' own")
        chosen = [float(weights.get(name, 1.0)) for name in names]
        if sum(chosen) <= 0:
            raise ConfigError("search.weights are all 0", "one objective must count")
        low, span = [], []
        scores = list(baselines)
        for objective in objectives:
            gains = [
                objective.gain(s[objective.name]) for s in scores if math.isfinite(s.get(objective.name, math.nan))
            ]
            low.append(min(gains, default=0.0))
            span.append((max(gains) - min(gains) or 1.0) if gains else 1.0)
        total = sum(chosen)
        shares = tuple(value / total for value in chosen)
        return Scalarisation(tuple(objectives), method, shares, tuple(low), tuple(span))

    def __call__(self, values: Mapping[str, float]) -> float:
        """The number for these values of the objectives, which are in the user's own directions."""
        gains = [
            (objective.gain(values[objective.name]) - low) / span
            for objective, low, span in zip(self.objectives, self.low, self.span, strict=True)
        ]
        weighted = sum(weight * gain for weight, gain in zip(self.weights, gains, strict=True))
        if self.method == "weighted":
            return weighted
        farthest = max(weight * (_UTOPIA - gain) for weight, gain in zip(self.weights, gains, strict=True))
        return _AUGMENTATION * weighted - farthest
