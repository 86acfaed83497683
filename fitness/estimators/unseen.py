"""Rows of which some items were run, and what they are with those that a latent model tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.protocols import Estimate
from fitness.estimators.ability import Told
from fitness.estimators.columns import Columns, Row
from fitness.estimators.item_response import ItemParameters


class Shown(NamedTuple):
    """A model that was run on some items.

    Attributes:
        columns, items: of those that the row has.
        row: what the model gave, NaN where an item was not run.
        told_by: what it is told from, chances in the place of answers.
        endpoints: known models that its abilities are sums of.
        chosen: which of the items run are anchors, shape ``(columns,)``; of the items that were not run only the
            others are a sample.
    """

    columns: Columns
    items: ItemParameters
    row: Row
    told_by: Row
    endpoints: Sequence[int]
    chosen: NDArray[np.bool_]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which items were run, shape ``(columns,)``."""
        return ~np.isnan(self.row)


class Unseen:
    """The items of a model that were not run, filled in step by step.

    Args:
        shown: what the model gave.
    """

    def __init__(self, shown: Shown) -> None:
        self._columns, self._seen, self._filled = shown.columns, shown.seen, shown.row.copy()
        self._lengths = np.array([s.stop - s.start for s in self._columns.stretches])
        self._chances = np.zeros(len(shown.row))
        self._spread = np.zeros((len(self._lengths), len(self._lengths)))

    def take(self, hidden: NDArray[np.intp], told: Told) -> None:
        """Take in what items of one kind would give.

        Args:
            hidden: their columns, ascending.
            told: what they would give.
        """
        self._filled[hidden], self._chances[hidden] = told.values, told.noise
        ends = [(s.start, s.stop) for s in self._columns.stretches]
        sums = [told.moves[begin:end].sum(axis=0) for begin, end in np.searchsorted(hidden, ends).tolist()]
        means = np.array(sums) / self._lengths[:, None]
        self._spread += means @ told.covariance @ means.T

    def raise_by(self, metric: int, above: float, variance: float) -> None:
        """Add to the items of a metric what answers are above their chances.

        Args:
            metric: which.
            above: what is added.
            variance: of that.
        """
        own = self._columns.stretches[metric]
        hidden = ~self._seen[own]
        self._filled[own][hidden] += above
        self._spread[metric, metric] += variance * float(hidden.mean()) ** 2

    def estimates(self) -> dict[str, Estimate]:
        """By objective what all items would give, and the error that the latent model says."""
        stretches = self._columns.stretches
        spread = self._spread + np.diag([self._chances[s].sum() for s in stretches] / np.square(self._lengths))
        means = [float(self._filled[s].mean()) for s in stretches]
        floors = (0.5 / self._lengths).tolist()
        values = self._columns.values(means, floors)
        slopes = {name: self._columns.gradient(name, means, floors) for name in self._columns.terms}
        return {name: Estimate(values[name], math.sqrt(float(g @ spread @ g))) for name, g in slopes.items()}
