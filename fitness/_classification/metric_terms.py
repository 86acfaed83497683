"""What metrics of a task say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.errors import ConfigError, nearest
from fitness._unlabelled.values import finite

CLASS_METRICS = ("accuracy", "f1", "matthews", "loss")
CORRELATIONS = ("pearson", "spearman")
MATTHEWS = "matthews"
"""A correlation too, of classes."""
NUMBER_METRICS = (*CORRELATIONS, "squared_error")
METRICS = (*CLASS_METRICS, *NUMBER_METRICS)
LOWER = ("loss", "squared_error")
"""Metrics of which less is better: they count negative."""
TOLD_TOGETHER = ("f1", "matthews", "pearson", "spearman")
"""Metrics that are told from all predictions together; the others are means over items."""


@dataclass(frozen=True)
class MetricTerm:
    """A metric and what it counts.

    Attributes:
        name: one of `METRICS`, or of the kind of items that the task has.
        weight: above 0.
    """

    name: str
    weight: float = 1.0

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which values of it are better."""
        return "minimize" if self.name in LOWER else "maximize"

    @property
    def factor(self) -> float:
        """The weight, negative where less is better."""
        return -self.weight if self.name in LOWER else self.weight


def parse_per_class(given: Any, key: str = "per_class") -> bool:
    """Whether metrics of each class are told; `ConfigError` for what is neither true nor false, naming `key`."""
    if not isinstance(given, bool):
        raise ConfigError(f"{key} is {given!r}", "true or false")
    return given


def parse_metrics(given: Any, key: str, known: Sequence[str]) -> tuple[MetricTerm, ...]:
    """The metrics of a task: a name, several, or names with weights.

    Raises:
        ConfigError: none of the `known`, a weight that is not above 0, or metrics of classes and of numbers together.
    """
    found = weighted_metrics(given, key, known)
    if len({metric.name in NUMBER_METRICS for metric in found}) > 1:
        raise ConfigError(
            f"{key} has {', '.join(metric.name for metric in found)}",
            f"of classes {', '.join(CLASS_METRICS)}; of numbers {', '.join(NUMBER_METRICS)}",
        )
    return found


def weighted_metrics(given: Any, key: str, known: Sequence[str], example: str = "") -> tuple[MetricTerm, ...]:
    """Metrics with weights: of a name, several, or a mapping.

    Args:
        given: by the user.
        key: for messages.
        known: that there are; any where it is empty.
        example: of names, for messages.

    Raises:
        ConfigError: none of the `known`, or a weight that is not above 0.
    """
    if isinstance(given, str):
        given = {given: 1.0}
    elif isinstance(given, Sequence) and given:
        given = dict.fromkeys(map(str, given), 1.0)
    if not isinstance(given, Mapping) or not given:
        allowed = f"names of metrics, with weights: {example or ', '.join(known)}"
        raise ConfigError(f"{key} is {str(given)[:80]}", allowed)
    found = []
    for name, weight in given.items():
        if known and name not in known:
            do = _BY_CLASS.get(str(name), {}).get(known[0], "")
            raise ConfigError(f"{key} has {name!r}", nearest(str(name), known), do)
        if finite(weight, f"{key}.{name}") <= 0:
            raise ConfigError(f"{key}.{name} is {weight:g}", "a number above 0: of losses and errors less is better")
        found.append(MetricTerm(str(name), float(weight)))
    return tuple(found)


_OWN_KEY = "per_class: true beside metrics tells the F1 of each class"
_BY_CLASS = {"per_class": {"accuracy": _OWN_KEY, "dice": "the IoU of each class is told beside any metrics"}}
"""What to do about what is no metric, by the first of those that are known."""
