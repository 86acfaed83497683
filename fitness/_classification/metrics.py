"""Metrics of predictions, each with a value for every item whose mean it is.

Accuracy, loss and squared error are means of items. F1, Matthews', Pearson's and Spearman's coefficients are told from
all items together: an item's value is then the metric plus its influence on it, the derivative by the item's weight
(Hampel 1974; the infinitesimal jackknife of Efron 1982, chapter 6). The mean of these values is the metric itself, and
the mean of two models' differences is the difference of their metrics, so that paired tests and standard errors by
items hold as the delta method has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata
from sklearn.metrics import f1_score, matthews_corrcoef

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]


def f1(gold: Classes, predicted: Classes) -> tuple[float, Floats]:
    """Macro F1, the mean over the classes that `gold` has: scikit-learn's, with 0 for a class never right.

    ``F_c = 2 TP / (P + T)`` with P predicted and T true items of class c; an item's influence on it is
    ``(tp - F_c (p + t) / 2) / mean((p + t) / 2)`` of its own 0s and 1s.

    Args:
        gold, predicted: classes, shape ``(items,)``.

    Returns:
        The metric, and values of the items, float64 of shape ``(items,)``.
    """
    classes = np.unique(gold)
    value = float(f1_score(gold, predicted, labels=classes, average="macro", zero_division=0))
    items = np.zeros(len(gold))
    for own in classes.tolist():
        true, taken = gold == own, predicted == own
        half = (true.astype(float) + taken) / 2
        score = float((true & taken).mean() / half.mean())
        items += score + ((true & taken) - score * half) / half.mean()
    return value, _about(items / len(classes), value)


def f1_by_class(gold: Classes, predicted: Classes) -> dict[int, float]:
    """F1 of each class that `gold` has."""
    classes = np.unique(gold)
    values = f1_score(gold, predicted, labels=classes, average=None, zero_division=0)
    return dict(zip(classes.tolist(), map(float, values), strict=True))


def matthews(gold: Classes, predicted: Classes) -> tuple[float, Floats]:
    """Matthews' correlation coefficient, of several classes as Gorodkin (2004) has it: scikit-learn's.

    It is ``C(x, y) / sqrt(C(x, x) C(y, y))`` of indicators of the classes, with C the sum of their covariances, and 0
    where all items or all predictions are of one class. Arguments and result as of `f1`.
    """
    value = float(matthews_corrcoef(gold, predicted))
    classes = np.unique(np.concatenate([gold, predicted]))
    x, y = ((own[:, None] == classes).astype(float) for own in (gold, predicted))
    return value, _about(_correlation(x, y, value), value)


def pearson(gold: Floats, predicted: Floats) -> tuple[float, Floats]:
    """Pearson's correlation coefficient: scipy's, and 0 where one of the two is constant.

    Args:
        gold, predicted: float64, shape ``(items,)``.
    """
    constant = len(gold) < 2 or np.ptp(gold) == 0 or np.ptp(predicted) == 0
    value = 0.0 if constant else float(pearsonr(gold, predicted).statistic)
    return value, _about(_correlation(gold[:, None], predicted[:, None], value), value)


def spearman(gold: Floats, predicted: Floats) -> tuple[float, Floats]:
    """Spearman's rank correlation coefficient: scipy's, of mean ranks where values are equal; 0 where one is constant.

    Every item shifts the ranks of all that are above it. With ``r_i(w) = sum_j w_j ([x_j < x_i] + [x_j = x_i] / 2)``
    an item's influence is that on Pearson's coefficient of the ranks, and the sum over all items of the coefficient's
    derivative by their rank times what it adds to that (Croux and Dehon 2010, section 2, for samples).

    Args:
        gold, predicted: float64, shape ``(items,)``.
    """
    x, y = (np.asarray(rankdata(own), dtype=np.float64) for own in (gold, predicted))
    value, items = pearson(x, y)
    if not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return value, items
    x, y = x - x.mean(), y - y.mean()
    by_x = y / np.sqrt((x * x).mean() * (y * y).mean()) - value * x / (x * x).mean()
    by_y = x / np.sqrt((x * x).mean() * (y * y).mean()) - value * y / (y * y).mean()
    items = items + _above(gold, by_x) + _above(predicted, by_y)
    return value, _about(items, value)


def _above(values: Floats, slopes: Floats) -> Floats:
    """For each item the sum of the slopes of items that are larger, and half of those of equal ones; shape (items,)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    sums = np.concatenate([[0.0], np.cumsum(slopes[order])])
    low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    found: Floats = sums[-1] - (sums[low] + sums[high]) / 2
    return found


def _correlation(x: Floats, y: Floats, value: float) -> Floats:
    """Values of items whose mean is a correlation, shape ``(items,)``, from columns of shape ``(items, columns)``."""
    x, y = x - x.mean(0), y - y.mean(0)
    xy, xx, yy = ((first * second).sum(1) for first, second in ((x, y), (x, x), (y, y)))
    if not (xx.mean() > 0 and yy.mean() > 0):
        return np.full(len(x), value)
    influence: Floats = xy / np.sqrt(xx.mean() * yy.mean()) - value * (xx / xx.mean() + yy / yy.mean()) / 2
    return value + influence


def _about(items: Floats, value: float) -> Floats:
    """The values with exactly this mean, but for rounding."""
    moved: Floats = items + (value - items.mean())
    return moved


def log_softmax(logits: Floats) -> Floats:
    """Of the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
