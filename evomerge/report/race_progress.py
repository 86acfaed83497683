"""On how many items candidates were scored in a race, and what its cheap rung did."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.report.formatting import count, percent
from evomerge.report.trial import number, numbers

_FEWEST = 10  # candidates that a correlation is told of


class RaceProgress:
    """What is known of the race of a run, told by told.

    Attributes:
        items, of: that candidates were scored on, and that there were for them, in all.
        rung: candidates with a score on the cheap rung.
        fell: those that went no further.
    """

    def __init__(self) -> None:
        self.items = self.of = 0.0
        self.rung = self.fell = 0
        self._cheap, self._scores = array("d"), array("d")  # of those that went on

    def see(self, race: Any, objectives: Any, objective: str) -> None:
        """Take in the fields of a ``told`` event.

        Args:
            race: as of `Evaluation`.
            objectives: by name.
            objective: the first.
        """
        if not race:
            return
        found = numbers(race)
        items, of = found.get("items", 0.0), found.get("of", 0.0)
        self.items += items
        self.of += of
        if "cheap" in found:
            self.rung += 1
            self.fell += items == 0 and of > 0
            score = number(objectives, objective)
            if items and math.isfinite(score):
                self._cheap.append(found["cheap"])
                self._scores.append(score)

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of scores on the cheap rung with the objective of those that went on; NaN where
        too few have both, or all are alike.
        """
        if len(self._cheap) < _FEWEST:
            return math.nan
        cheap, scores = (_ranks(np.array(values)) for values in (self._cheap, self._scores))
        if np.ptp(cheap) == 0 or np.ptp(scores) == 0:
            return math.nan
        return float(np.corrcoef(cheap, scores)[0, 1])

    def lines(self, whole: str = "") -> list[str]:
        """In words, a sentence each; none where there was no race.

        Args:
            whole: why those that went on were scored on all items, in words.
        """
        lines = []
        if self.rung:
            went_on = self.rung - self.fell
            line = f"The cheap rung let {went_on:,} of {count(self.rung, 'candidate')} go on"
            if math.isfinite(self.correlation):
                line += f", which it ranks as they were scored by {self.correlation:.2f} (Spearman)"
            lines.append(f"{line}.")
        if whole:
            lines.append(whole)
        if 0 < self.items <= self.of < math.inf:
            share = percent(self.items / self.of)
            lines.append(f"Scored {count(round(self.items), 'item')} of {round(self.of):,} ({share}) in the search.")
        return lines


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values having the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[places], dtype=np.float64)
