"""How far off an estimator is on models that are known, so that its standard errors say what they should."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.columns import Columns

MOST_REPLAYS = 96
_PRIOR = 6.0  # replays that what is expected counts as much as
_FLAWED = 1.2  # squared error over what the latent model says, where nothing is known: it is never quite right
_OF_ANCHORS = 2.0
"""At least, where items are anchors: of the others nothing is known but from models with all items, few and unlike what
a search comes to."""
_SHARES = (0.5,)
_FEWEST = 4
_USUAL = 0.6  # correlation of the two errors: both have in them the chance of the items seen


@dataclass(frozen=True)
class Calibration:
    """What errors are multiplied by.

    Attributes:
        told: errors of the latent model's estimates.
        drawn: errors of means of the items seen.
        common: the correlation of the two.
    """

    told: float = 1.0
    drawn: float = 1.0
    common: float = _USUAL


def some_of(
    values: NDArray[np.float64], columns: Columns, ranks: NDArray[np.float64], last: Sequence[int], chosen: bool
) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Known models to tell from some of their own items: the model, the columns that are taken for all, those shown.

    The latest models, those of `last` after the others. A quarter or half of a model's items of each task is shown,
    those of the lowest rank. Where items are anchors, only models with all items say how the others turn out; they are
    shown as many as models have that lack some.

    Args:
        values: shape ``(models, columns)``, NaN where an item was not run.
        columns: where metrics stand.
        ranks: shape ``(columns,)``: the order in which items would be run, the same for all metrics of a task.
        last: models that are used only where there are not enough others.
        chosen: whether the items that were run are anchors.
    """
    seen = (~np.isnan(values)).mean(axis=1)
    partly = seen[seen < 1]
    shares = (float(np.median(partly)),) if chosen and len(partly) else _SHARES
    models = [*(k for k in reversed(range(len(values))) if k not in last), *reversed(last)]
    models = [k for k in models if seen[k] == 1] if chosen else models
    for number, model in enumerate(models[:MOST_REPLAYS]):
        part = ~np.isnan(values[model])
        shown = np.zeros_like(part)
        for stretch in columns.stretches:
            own = np.flatnonzero(part[stretch])
            if len(own) < _FEWEST:
                break
            kept = max(2, round(len(own) * shares[number % len(shares)]))
            first = own[np.argsort(ranks[stretch][own], kind="stable")[:kept]]
            shown[stretch.start + first] = True
        else:
            yield model, part, shown


def calibrate(replays: Sequence[tuple[float, float, float, float]], chosen: bool) -> Calibration:
    """From how far off replays were, and how far off they said they were.

    Args:
        replays: the latent model's error and what it said of it, the mean's and what it said; standard errors above 0.
        chosen: whether the items seen are anchors: the error of the mean of items at random is right as it is.
    """
    count = len(replays) + _PRIOR
    found = np.array(replays).reshape(-1, 4)
    told, drawn = found[:, 0] / found[:, 1], found[:, 2] / found[:, 3]
    scales = [math.sqrt((float(each @ each) + _PRIOR * _FLAWED) / count) for each in (told, drawn)]
    common = (float(told @ drawn) + _PRIOR * _USUAL) / count / (scales[0] * scales[1])
    # a correlation that is found too small makes the sum of the two look better than it is
    if chosen:
        scales = [max(scale, _OF_ANCHORS) for scale in scales]
    return Calibration(scales[0], scales[1] if chosen else 1.0, min(max(common, _USUAL), 0.95))
