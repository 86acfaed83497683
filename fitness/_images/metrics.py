"""From logits to values per image, and from those to metrics, objectives and what each metric counts in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Items
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare
from fitness._images.terms import METRICS, ImageTerm

Floats = NDArray[np.float64]


def values_of(logits: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, Floats]:
    """Values of each image, by metric; their mean is the metric.

    Of macro F1, the mean over the K classes of ``2 TP / (2 TP + FP + FN)``, an image that is told right counts
    ``2 N / (K (n + m))``, with its class's n images and m predictions, of N images in all; another counts nothing.
    Classes are those of images or predictions, as scikit-learn takes them.

    Args:
        logits: of shape (images, classes), finite.
        labels: the right classes, of shape (images,).
        names: of `METRICS`.
    """
    told = logits.argmax(axis=1)
    right = (told == labels).astype(np.float64)
    found: dict[str, Floats] = {}
    for name in names:
        if name == "acc":
            found[name] = right
        elif name == "macro_f1":
            counts = [np.bincount(own, minlength=logits.shape[1]) for own in (labels, told)]
            both = counts[0] + counts[1]
            classes = int(np.count_nonzero(both))
            found[name] = right * 2 * len(labels) / (classes * both[labels])
        else:
            wide = logits.astype(np.float64)
            top = wide.max(axis=1)
            total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
            found[name] = total - wide[np.arange(len(labels)), labels]
    return found


def totals(terms: Sequence[ImageTerm], items: Items) -> tuple[dict[str, float], dict[str, float]]:
    """Objectives, larger is better, and metrics as ``task/metric``.

    An objective is the mean over its tasks, by their weights, of the sums of their metrics by theirs.

    Args:
        terms: the tasks.
        items: values of images as ``task/metric``; NaN where an image was not run.
    """
    weights = objective_weights(terms)
    sums, metrics = dict.fromkeys(weights, 0.0), {}
    for term in terms:
        for metric in term.metrics:
            key = f"{term.name}/{metric.name}"
            metrics[key] = float(np.nanmean(items[key]))
            sums[term.objective] += term.weight * metric.factor * metrics[key]
    return {name: total / weights[name] for name, total in sums.items()}, metrics


def objective_weights(terms: Sequence[ImageTerm]) -> dict[str, float]:
    """By objective the sum of the weights of its tasks."""
    found: dict[str, float] = {}
    for term in terms:
        found[term.objective] = found.get(term.objective, 0.0) + term.weight
    return found


def shares(terms: Sequence[ImageTerm]) -> list[MetricShare]:
    """What each metric counts in its objective."""
    weights, found = objective_weights(terms), []
    for term in terms:
        for metric in term.metrics:
            weight = term.weight * abs(metric.factor) / weights[term.objective]
            if weight > 0:
                direction: Literal["maximize", "minimize"] = "maximize" if metric.factor > 0 else "minimize"
                found.append(MetricShare(f"{term.name}/{metric.name}", weight, direction, term.objective))
    return found


def item_shares(terms: Sequence[ImageTerm]) -> list[MetricShare]:
    """As `shares`, of metrics that some images tell of.

    Raises:
        FitnessError: macro F1, whose values of images depend on the others.
    """
    for term in terms:
        if any(metric.name == "macro_f1" and metric.weight for metric in term.metrics):
            raise FitnessError(
                f"{term.name}/macro_f1 cannot be estimated from some images: it is no mean of them",
                f"metrics {', '.join(name for name in METRICS if name != 'macro_f1')}",
            )
    return shares(terms)


def require_finite(logits: NDArray[np.float32], where: Mapping[int, str] | Sequence[str]) -> None:
    """Raise `FitnessError` for logits that are NaN or infinite, naming the first image."""
    wild = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(wild):
        raise FitnessError(f"the model's outputs for {where[int(wild[0])]} are not finite", "finite weights")
