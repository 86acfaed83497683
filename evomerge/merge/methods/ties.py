"""TIES: trim task vectors, elect a sign per element, average what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from evomerge.merge.methods.parameters import DENSITY, LAMBDA, NORMALIZE, WEIGHT, unchanged_task
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mix import Cut, Mix, Statistics, Term


def trim(statistics: Statistics, index: int, density: float) -> Cut | None:
    """What keeps the ``int(density * n)`` largest magnitudes of a task vector, at least one."""
    return statistics.cut(index, 0, max(1, int(density * statistics.count))) if density < 1 else None


@mix_method(
    "ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NORMALIZE,
    summary="trimmed task vectors, averaged where their signs agree (arXiv 2306.01708)",
    base="required",
    unchanged=unchanged_task,
)
def ties(values: Values, statistics: Statistics) -> Mix:
    """TIES-merging: trim to the largest magnitudes per tensor, elect signs, merge those that agree.

    The paper trims over the whole model; like mergekit, this trims each tensor by itself, which is what a
    density per slice means.
    """
    terms = tuple(
        Term(weight if density > 0 else 0.0, trim(statistics, i, density) if weight != 0 and density > 0 else None)
        for i, (weight, density) in enumerate(zip(values["weight"], values["density"], strict=True))
    )
    return Mix(terms, differences=True, elect=True, normalize=values["normalize"], scale=values["lambda_"])
