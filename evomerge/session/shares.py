"""What a fitness says that its metrics count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evomerge.objectives import MetricShare
from evomerge.protocols import Fitness


def metric_shares(fitness: Fitness | None) -> Sequence[MetricShare]:
    """What each metric counts in the objectives; empty where the fitness does not say."""
    declared: Callable[[], Sequence[MetricShare]] | None = getattr(fitness, "shares", None)
    return declared() if declared is not None else ()
