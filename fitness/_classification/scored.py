"""From outputs to metrics, values of items and objectives."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from evomerge.candidate import Items
from evomerge.errors import FitnessError
from fitness._classification import metrics as m
from fitness._classification.metric_terms import TOLD_TOGETHER, MetricTerm
from fitness._classification.terms import CountedTerm, objective_weights

ERROR = "error"
"""Of every item: of classes 0 where right, else one more than the class that it was taken for; of numbers the
prediction less the label. Predictions are told from it."""

_CORRELATIONS = {"pearson": m.pearson, "spearman": m.spearman}


def score_classes(
    gold: m.Classes, logits: m.Floats, names: Sequence[str] = (), wanted: Collection[str] = ("f1", "matthews")
) -> tuple[dict[str, float], dict[str, m.Floats]]:
    """Metrics and values of items of a task of classes.

    Args:
        gold: classes, shape ``(items,)``.
        logits: float64, shape ``(items, classes)``; of equal ones the first is taken.
        names: of all classes, for metrics ``f1 NAME``; none where they are empty.
        wanted: of ``f1`` and ``matthews`` those that are told: they take longer than a small model's forward.
    """
    predicted = logits.argmax(-1).astype(np.int64)
    items = {
        "accuracy": (predicted == gold).astype(np.float64),
        "loss": -m.log_softmax(logits)[np.arange(len(gold)), gold],
        ERROR: np.where(predicted == gold, 0, predicted + 1).astype(np.float64),
    }
    values = {name: float(items[name].mean()) for name in ("accuracy", "loss")}
    for name, metric in (("f1", m.f1), ("matthews", m.matthews)):
        if name in wanted:
            values[name], items[name] = metric(gold, predicted)
    if names:
        values |= {f"f1 {_plain(names[own])}": score for own, score in m.f1_by_class(gold, predicted).items()}
    return values, items


def score_numbers(gold: m.Floats, predicted: m.Floats) -> tuple[dict[str, float], dict[str, m.Floats]]:
    """Metrics and values of items of a task of numbers.

    Args:
        gold, predicted: float64, shape ``(items,)``.
    """
    error = predicted - gold
    items = {"squared_error": np.square(error), ERROR: error}
    values = {"squared_error": float(items["squared_error"].mean())}
    for name, metric in _CORRELATIONS.items():
        values[name], items[name] = metric(gold, predicted)
    return values, items


def of_errors(metric: MetricTerm, gold: m.Floats, errors: m.Floats) -> m.Floats:
    """Values of a metric that is no mean of items, anew for those that were run.

    Args:
        metric: it.
        gold: labels of all items, shape ``(items,)``.
        errors: `ERROR` of all items, NaN where an item was not run.

    Returns:
        Shape ``(items,)``, NaN likewise.
    """
    seen = ~np.isnan(errors)
    found = np.full(len(errors), np.nan)
    if not seen.any():
        return found
    right, off = gold[seen], errors[seen]
    if metric.name in _CORRELATIONS:
        found[seen] = _CORRELATIONS[metric.name](right, right + off)[1]
    else:
        classes = right.astype(np.int64)
        predicted = np.where(off == 0, classes, off - 1).astype(np.int64)
        found[seen] = (m.f1 if metric.name == "f1" else m.matthews)(classes, predicted)[1]
    return found


def kept_items(
    term: CountedTerm, items: Mapping[str, m.Floats], also: Sequence[str] | None = None
) -> dict[str, m.Floats]:
    """The values of items that are reported: of metrics that count, of `also`, and `ERROR`.

    Args:
        term: the task.
        items: all values of its items.
        also: accuracy or squared error for ``None``.
    """
    also = also if also is not None else ("squared_error" if term.is_numeric else "accuracy",)
    names = [*(metric.name for metric in term.metrics), *also, ERROR]
    return {f"{term.name}/{name}": items[name] for name in dict.fromkeys(names)}


def objectives_of(terms: Sequence[CountedTerm], metrics: Mapping[str, float]) -> dict[str, float]:
    """Objectives, larger is better: the mean over tasks, by their weights, of the sums of their metrics by theirs.

    Raises:
        FitnessError: a metric that is not finite.
    """
    weights = objective_weights(terms)
    sums = dict.fromkeys(weights, 0.0)
    for term in terms:
        for metric in term.metrics:
            value = metrics[f"{term.name}/{metric.name}"]
            if not math.isfinite(value):
                raise FitnessError(f"metric {term.name}/{metric.name} is {value}", "a finite number")
            sums[term.objective] += term.weight * metric.factor * value
    return {name: total / weights[name] for name, total in sums.items()}


def recomputed(terms: Sequence[CountedTerm], gold: Mapping[str, m.Floats], items: Items) -> dict[str, m.Floats]:
    """The items with those metrics anew that are told from all of the items that were run.

    Args:
        terms: the tasks.
        gold: by task the labels, as numbers.
        items: as `kept_items` gives them, NaN where an item was not run.
    """
    found = dict(items)
    for term in terms:
        for metric in term.metrics:
            if metric.name in TOLD_TOGETHER:
                errors = found[f"{term.name}/{ERROR}"]
                found[f"{term.name}/{metric.name}"] = of_errors(metric, gold[term.name], errors)
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("/", "_").split()) or "-"
