"""Who rated what of a run, and how far raters agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.report.formatting import clean, count, listed, number
from evomerge.run.folder import RunFolder
from evomerge.run.ratings.folder import RatingFolder

_FEWEST = 3  # pairs of scores below which a correlation says nothing


@dataclass(frozen=True)
class Rater:
    """What one rater gave.

    Attributes:
        name: who.
        candidates: how many were rated, and counted.
        mean: of all scores.
    """

    name: str
    candidates: int
    mean: float


@dataclass(frozen=True)
class Agreement:
    """The ratings that counted, of all splits.

    Attributes:
        candidates: models that were rated.
        raters: by name.
        by_score: Spearman's rank correlation of two raters' scores, the mean over all pairs of raters; ``None`` where
            no two have scored three things in common, or one gave all of them the same.
        by_candidate: the same of their mean scores of candidates, which decide what a search learns.
    """

    candidates: int
    raters: tuple[Rater, ...]
    by_score: float | None
    by_candidate: float | None

    def text(self) -> str:
        """In words: a sentence without its full stop."""
        who = [f"{clean(rater.name, 40)} {count(rater.candidates)}, mean {number(rater.mean)}" for rater in self.raters]
        text = f"People rated {count(self.candidates, 'model')}: {listed(who, 8)}"
        if len(self.raters) < 2:
            return text
        if self.by_score is None:
            return f"{text}; too few scores in common to say how far they agree"
        means = "" if self.by_candidate is None else f", {number(self.by_candidate)} of models' means"
        return f"{text}; rank correlation of two raters {number(self.by_score)} of scores{means}"


def agreement(folder: RunFolder) -> Agreement | None:
    """What was counted of raters' files; ``None`` where nothing was."""
    ratings = RatingFolder(folder.rating)
    found: list[Mapping[str, NDArray[np.float64]]] = []
    for candidate, rules in ratings.candidates(ratings.rules()):
        scores = candidate.read_accepted(rules)
        if scores:
            found.append({rater: np.array(own) for rater, own in scores.items()})
    names = sorted({rater for each in found for rater in each})
    if not names:
        return None
    own = {name: [each[name] for each in found if name in each] for name in names}
    raters = tuple(Rater(name, len(all_), float(np.concatenate(all_).mean())) for name, all_ in own.items())
    by_score = _correlation(found, names, np.concatenate)
    by_candidate = _correlation(found, names, lambda parts: np.array([part.mean() for part in parts]))
    return Agreement(len(found), raters, by_score, by_candidate)


def _correlation(
    found: Sequence[Mapping[str, NDArray[np.float64]]],
    names: Sequence[str],
    joined: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]],
) -> float | None:
    """The mean of Spearman's rank correlation over the pairs of raters that have one."""
    from scipy.stats import spearmanr

    values = []
    for one, other in itertools.combinations(names, 2):
        both = [(each[one], each[other]) for each in found if one in each and other in each]
        if not both:
            continue
        a, b = (joined(side) for side in zip(*both, strict=True))
        if len(a) >= _FEWEST and np.ptp(a) > 0 and np.ptp(b) > 0:
            values.append(float(spearmanr(a, b).statistic))
    return float(np.mean(values)) if values else None
