"""One number from several objectives: for strategies that optimise one, and to choose a winner from a front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import ConfigError, nearest
from evomerge.protocols import Objective

METHODS = ("weighted", "tchebycheff")

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
        method: see above.
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
        if method not in METHODS:
            raise ConfigError(f"scalarisation {method!r}", nearest(method, METHODS))
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
