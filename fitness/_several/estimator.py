"""Estimates of several fitnesses: each tells of its own objectives from its own items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.candidate import Items
from evomerge.protocols import Estimate, Estimator


@dataclass(frozen=True)
class PartEstimator:
    """One fitness's estimator.

    Attributes:
        estimator: it.
        tasks: of the fitness.
        names: its objectives, by their own names, as they are called among several.
    """

    estimator: Estimator
    tasks: frozenset[str]
    names: Mapping[str, str]

    def own(self, items: Items) -> Items:
        """Those of its tasks."""
        return {name: values for name, values in items.items() if name.rpartition("/")[0] in self.tasks}

    def renamed(self, found: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """Estimates under the names that objectives have among several."""
        return {self.names[name]: value for name, value in found.items()}


class SeveralEstimators:
    """One estimator for each fitness; implements `evomerge.protocols.Estimator`."""

    def __init__(self, parts: Sequence[PartEstimator]) -> None:
        self._parts = tuple(parts)

    def fit(self, known: Sequence[Items]) -> None:
        """Let each learn from the items that are its own."""
        for part in self._parts:
            part.estimator.fit([part.own(items) for items in known])

    def order(self, counts: Mapping[str, int]) -> Mapping[str, Sequence[int]] | None:
        """The orders that each prefers; ``None`` unless all have a preference."""
        found: dict[str, Sequence[int]] = {}
        for part in self._parts:
            preferred = part.estimator.order({task: count for task, count in counts.items() if task in part.tasks})
            if preferred is None:
                return None
            found |= preferred
        return found

    def estimate(self, items: Items) -> Mapping[str, Estimate]:
        """By objective of all fitnesses."""
        return self._each(lambda part: part.estimator.estimate(part.own(items)))

    def difference(self, items: Items, other: Items) -> Mapping[str, Estimate]:
        """By objective of all fitnesses."""
        return self._each(lambda part: part.estimator.difference(part.own(items), part.own(other)))

    def by_item(self, items: Items, at: Items) -> Mapping[str, Items]:
        """By objective of all fitnesses what each item adds."""
        found: dict[str, Items] = {}
        for part in self._parts:
            own = part.estimator.by_item(part.own(items), part.own(at))
            found |= {part.names[name]: values for name, values in own.items()}
        return found

    def _each(self, ask: Callable[[PartEstimator], Mapping[str, Estimate]]) -> dict[str, Estimate]:
        found: dict[str, Estimate] = {}
        for part in self._parts:
            found |= part.renamed(ask(part))
        return found
