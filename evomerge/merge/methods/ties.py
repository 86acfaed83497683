"""TIES: trim task vectors, elect a sign per element, average what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from evomerge.merge.methods.parameters import DENSITY, LAMBDA, NO_RESCALE, NORMALIZE, WEIGHT, unchanged_task
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.methods.task_vectors import fused, trimmed
from evomerge.merge.mixes.mix import Mix, Statistics


@mix_method(
    "ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NORMALIZE,
    NO_RESCALE,
    summary="trimmed task vectors, averaged where their signs agree (arXiv 2306.01708)",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
)
def ties(values: Values, statistics: Statistics) -> Mix:
    """TIES-merging: trim to the largest magnitudes per tensor, elect signs, merge those that agree.

    The paper trims over the whole model; like mergekit, this trims each tensor by itself, which is what a
    density per slice means: to the ``int(density * n)`` largest magnitudes, at least one. ``rescale``, which the paper
    does not have, restores the sum of magnitudes after the trim.
    """
    count = statistics.count

    def ranks(index: int, density: float) -> tuple[int, int]:
        return 0, min(count, max(1, int(density * count))) if density > 0 else 0

    return fused(trimmed(values, statistics, ranks), values, elect=True)
