"""What all items would give, told from some, where metrics are no means of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Items
from evomerge.objectives import Objective
from evomerge.protocols import Estimate
from fitness._classification.scored import ERROR, recomputed
from fitness._classification.terms import CountedTerm, shares_of
from fitness.estimators.stratified_mean import StratifiedMean


class PredictionsEstimator(StratifiedMean):
    """The metrics of the items that were run, for those of all; with errors by the delta method.

    Metrics that are told from all predictions together are taken anew from those of the items that were run, in however
    many steps that was; the rest is `StratifiedMean`'s.

    Args:
        terms: the tasks.
        objectives: to estimate.
        gold: by task the labels, as numbers, shape ``(items,)``.
    """

    def __init__(
        self, terms: Sequence[CountedTerm], objectives: Sequence[Objective], gold: Mapping[str, NDArray[np.float64]]
    ) -> None:
        super().__init__(shares_of(terms), objectives)
        self._terms, self._gold = terms, gold

    def fit(self, known: Sequence[Items]) -> None:
        """As of `StratifiedMean`."""
        super().fit([self._anew(items) for items in known])

    def estimate(self, items: Items) -> Mapping[str, Estimate]:
        """As of `StratifiedMean`."""
        return super().estimate(self._anew(items))

    def difference(self, items: Items, other: Items) -> Mapping[str, Estimate]:
        """As of `StratifiedMean`, with the metrics of the items that both have."""
        common = {}
        for term in self._terms:
            key = f"{term.name}/{ERROR}"
            common[term.name] = ~(np.isnan(items[key]) | np.isnan(other[key]))
        first, second = (
            {name: np.where(common[name.rpartition("/")[0]], own, np.nan) for name, own in each.items()}
            for each in (items, other)
        )
        return super().difference(self._anew(first), self._anew(second))

    def by_item(self, items: Items, at: Items) -> Mapping[str, Items]:
        """As of `StratifiedMean`."""
        return super().by_item(self._anew(items), self._anew(at))

    def _anew(self, items: Items) -> Items:
        return recomputed(self._terms, self._gold, items)
