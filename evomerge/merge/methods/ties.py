"""TIES: trim task vectors, elect a sign per element, average what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from evomerge.merge.methods.parameters import DENSITY, LAMBDA, NO_RESCALE, NORMALIZE, SCOPE, WEIGHT, unchanged_task
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
    SCOPE,
    summary="trimmed task vectors, averaged where their signs agree (arXiv 2306.01708)",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
)
def ties(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum_A w_i m_i tau_i / sum_A w_i``, ``A`` the inputs that agree with the elected sign.

    TIES-merging: trim to the largest magnitudes, elect ``sign(sum w_i m_i tau_i)``, merge those that agree. For many
    models whose changes contradict each other, most of which are small and do not matter.

    Trimming leaves the ``int(density * n)`` largest magnitudes of a task vector, at least one. The paper ranks over the
    whole model (``scope: model``): tensors that changed little are trimmed more than others, or wholly. Like mergekit,
    ``scope: tensor`` trims each tensor by itself. A slice's density is its share of the ranks in its scope.
    ``rescale``, which the paper does not have, restores the sum of magnitudes of each tensor after the trim.
    """

    def ranks(index: int, density: float, count: int) -> tuple[int, int]:
        return 0, min(count, max(1, int(density * count))) if density > 0 else 0

    return fused(trimmed(values, statistics, ranks), values, elect=True)
