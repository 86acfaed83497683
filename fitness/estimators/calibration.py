"""How far off an estimator is on models that are known, so that its standard errors say what they should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.columns import Columns

MOST_REPLAYS = 48
_MOST_COLUMNS = 2**15  # that are told at once: some tens of megabytes
_PRIOR = 6.0  # replays that what is expected counts as much as
_FLAWED = 1.2  # squared error over what the latent model says, where nothing is known: it is never quite right
_OF_CHANCES = 1.05
"""At least, where answers are taken as chances: by the few answers of a replay nobody sees how little these are off."""
_FEWEST = 4
_USUAL = 0.6  # correlation of the two errors: both have in them the chance of the items seen


@dataclass(frozen=True)
class Calibration:
    """What errors are multiplied by.

    Attributes:
        told: errors of the latent model's estimates.
        common: the correlation of the two.
    """

    told: float = 1.0
    common: float = _USUAL


class Replay(NamedTuple):
    """A known model to tell from some of its own items.

    Attributes:
        model: which.
        left_out: all that are left out with it.
        part: its items, shape ``(columns,)``.
        shown: those of them that it is told from.
        chosen: those of these that are anchors.
    """

    model: int
    left_out: list[int]
    part: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    chosen: NDArray[np.bool_]


def batches(replays: Iterable[Replay]) -> Iterator[list[Replay]]:
    """Replays to tell at once, as many as have `_MOST_COLUMNS` items or so."""
    found: list[Replay] = []
    columns = 0
    for replay in replays:
        found.append(replay)
        columns += int(replay.part.sum())
        if columns >= _MOST_COLUMNS:
            yield found
            found, columns = [], 0
    if found:
        yield found


def some_of(
    values: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    columns: Columns,
    order: NDArray[np.float64],
    last: Sequence[int],
) -> Iterator[Replay]:
    """Known models to tell from some of their own items.

    The latest models, those of `last` after the others. Shown are a model's anchors and half of its other items of each
    task, drawn; what is left stands for the items that it was not run on. Of these less is known than of its own, which
    other models were run on because it was: those are left out with it.

    Args:
        values: shape ``(models, columns)``, NaN where an item was not run.
        chosen: which of these are anchors, shape ``(models, columns)``.
        columns: where metrics stand.
        order: shape ``(columns,)``: a drawn order of each task's items, the same for all of its metrics.
        last: models that are used only where there are not enough others.
    """
    seen = ~np.isnan(values)
    partly = seen.mean(axis=1) < 1
    common = seen.astype(np.float64) @ seen.T.astype(np.float64)
    models = [*(k for k in reversed(range(len(values))) if k not in last), *reversed(last)]
    for model in models[:MOST_REPLAYS]:
        part = seen[model]
        like = partly & (common[model] > 0.5 * common[model, model]) if partly[model] else np.zeros_like(partly)
        like[model] = True
        shown = np.zeros_like(part)
        for stretch in columns.stretches:
            anchors = chosen[model][stretch]
            own = np.flatnonzero(part[stretch] & ~anchors)
            if len(own) < _FEWEST:
                break
            first = own[np.argsort(order[stretch][own], kind="stable")[: max(2, len(own) // 2)]]
            shown[stretch.start + first] = True
            shown[stretch] |= anchors
        else:
            yield Replay(model, np.flatnonzero(like).tolist(), part, shown, chosen[model])


def calibrate(replays: Sequence[tuple[float, float, float, float]], chances: bool) -> Calibration:
    """From how far off replays were, and how far off they said they were.

    Args:
        replays: the latent model's error and what it said of it, the mean's and what it said; standard errors above 0.
        chances: whether answers were taken as chances.
    """
    count = len(replays) + _PRIOR
    found = np.array(replays).reshape(-1, 4)
    told, drawn = found[:, 0] / found[:, 1], found[:, 2] / found[:, 3]
    scales = [math.sqrt((float(each @ each) + _PRIOR * _FLAWED) / count) for each in (told, drawn)]
    common = (float(told @ drawn) + _PRIOR * _USUAL) / count / (scales[0] * scales[1])
    if chances:
        scales[0] = max(scales[0], _OF_CHANCES)
    # a correlation that is found too small makes the sum of the two look better than it is
    return Calibration(scales[0], min(max(common, _USUAL), 0.95))
