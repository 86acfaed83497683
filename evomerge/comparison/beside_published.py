"""Ours beside the numbers that were published: absolute differences, and whether both rank alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.comparison.rows import ComparedRow, Outcome
from evomerge.comparison.settings import AVERAGE, Published

_FEWEST = 3
"""Rows that a rank correlation is of at least."""


@dataclass(frozen=True)
class BesidePublished:
    """Two tables of the same rows and columns, in the published unit.

    Attributes:
        columns: that a published row has, in our order; ``average`` last.
        rows: that the published table has, in its order.
        ours: by row and column; what is missing was not scored.
        published: likewise; what is missing was not published.
        correlations: by column Spearman's, over the rows that have both; none where these are fewer than three, or all
            alike.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    ours: Mapping[str, Mapping[str, float]]
    published: Mapping[str, Mapping[str, float]]
    correlations: Mapping[str, float]

    def difference(self, row: str, column: str) -> float | None:
        """Ours less the published; ``None`` where one is missing."""
        both = self.ours.get(row, {}).get(column), self.published[row].get(column)
        return None if both[0] is None or both[1] is None else both[0] - both[1]


def beside_published(outcome: Outcome) -> BesidePublished | None:
    """Compare with the published table; ``None`` where the protocol has none."""
    published = outcome.plan.protocol.published
    if published is None:
        return None
    named = {column for numbers in published.rows.values() for column in numbers}
    columns = [own.name for own in outcome.columns if own.name in named]
    columns += [own for own in sorted(named) if own not in columns and own != AVERAGE]
    columns += [AVERAGE] if AVERAGE in named else []
    ours = {row.name: _numbers(row, published) for row in outcome.rows if row.name in published.rows}
    correlations = {}
    for column in columns:
        pairs = [
            (ours[row][column], numbers[column])
            for row, numbers in published.rows.items()
            if column in numbers and column in ours.get(row, {})
        ]
        found = spearman(pairs)
        if found is not None:
            correlations[column] = found
    return BesidePublished(columns, list(published.rows), ours, published.rows, correlations)


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; ``None`` of fewer than three pairs, or without spread."""
    if len(pairs) < _FEWEST:
        return None
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in zip(*pairs, strict=True)]
    if any(np.ptp(own) == 0 for own in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _numbers(row: ComparedRow, published: Published) -> dict[str, float]:
    found = {name: published.scale * value for name, value in row.scores.items()}
    return found if row.average is None else {**found, AVERAGE: published.scale * row.average}
