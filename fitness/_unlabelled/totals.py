"""From values per text to metrics, objectives and what each metric counts in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.candidate import Items
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare
from fitness._unlabelled.terms import MetricTerm, TextTerm


def totals(terms: Sequence[TextTerm], items: Items) -> tuple[dict[str, float], dict[str, float]]:
    """Objectives, larger is better, and metrics as ``text/metric``.

    A metric is the mean of its texts' values, a perplexity ``exp`` of it. An objective is the mean over the domains
    that count in it, by their weights, of the sums of their metrics by theirs.

    Raises:
        FitnessError: a metric that is not finite.
    """
    weights, sums, metrics = objective_weights(terms), dict.fromkeys(objective_weights(terms), 0.0), {}
    for term in terms:
        for metric in term.metrics:
            name = f"{term.name}/{metric.name}"
            mean = float(np.nanmean(items[name]))
            value = mean if metric.name != "perplexity" else _exp(mean)
            counted = mean if metric.log else value
            if not math.isfinite(counted):
                do = "for a perplexity use transform: log"
                raise FitnessError(f"metric {name} is {value}", "a finite number", do)
            metrics[name] = value
            sums[metric.objective] += term.weight * metric.factor * counted
    return {name: total / weights[name] for name, total in sums.items()}, metrics


def objective_weights(terms: Sequence[TextTerm]) -> dict[str, float]:
    """By objective the sum of the weights of the domains that count in it."""
    found: dict[str, float] = {}
    for term in terms:
        for name in dict.fromkeys(metric.objective for metric in term.metrics):
            found[name] = found.get(name, 0.0) + term.weight
    return found


def shares(terms: Sequence[TextTerm], *, of_items: bool = False) -> list[MetricShare]:
    """What each metric counts in its objective.

    Args:
        terms: the domains.
        of_items: whether it is the mean of items that counts: of a perplexity's the logarithm is the mean.

    Raises:
        FitnessError: with `of_items`, a perplexity of which no logarithm is taken.
    """
    weights, found = objective_weights(terms), []
    for term in terms:
        for metric in term.metrics:
            weight = term.weight * abs(metric.factor) / weights[metric.objective]
            if weight > 0:
                transform = _of_items(term, metric) if of_items else _transform(metric)
                direction: Literal["maximize", "minimize"] = "maximize" if metric.factor > 0 else "minimize"
                key = f"{term.name}/{metric.name}"
                found.append(MetricShare(key, weight, direction, metric.objective, transform))
    return found


def cautions(terms: Sequence[TextTerm]) -> list[str]:
    """That an objective is of entropy or of a reward alone, which models have that are of no use."""
    found = []
    for name in objective_weights(terms):
        kinds = {metric.name for term in terms for metric in term.metrics if metric.objective == name}
        if kinds == {"entropy"}:
            found.append(
                f"objective {name} is of entropy alone, which a model that is sure of anything has little of; "
                "add soft_cross_entropy or kl_to_base"
            )
        if kinds == {"reward"}:
            found.append(
                f"objective {name} is of a reward alone, which a model may have for texts that please the classifier "
                "and nobody else; add kl_to_base, and look at what the winner writes"
            )
    return found


def _transform(metric: MetricTerm) -> Literal["", "log"]:
    return "log" if metric.log else ""


def _of_items(term: TextTerm, metric: MetricTerm) -> Literal["", "log"]:
    if metric.name == "perplexity" and not metric.log:
        raise FitnessError(
            f"{term.name}/perplexity cannot be estimated from some items: it is no mean of them",
            "perplexity with transform: log",
            f"set texts.{term.name}.metrics.perplexity={{transform: log}}",
        )
    return ""


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
