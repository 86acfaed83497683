"""Model Breadcrumbs: task vectors without their outliers and their small perturbations (arXiv 2312.06795)."""

from __future__ import annotations

from evomerge.merge.methods.parameters import (
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    NO_RESCALE,
    SCOPE,
    WEIGHT,
    check_normalisable,
    unchanged_task,
)
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.methods.task_vectors import fused, trimmed
from evomerge.merge.mixes.mix import Mix, Statistics, Term
from evomerge.recipes.method_spec import ParameterSpec

GAMMA = ParameterSpec(
    "gamma",
    0.01,
    low=0.0,
    high=0.1,
    per_input=True,
    minimum=0.0,
    maximum=1.0,
    summary="share of the largest magnitudes that is dropped",
)


def _crumbs(values: Values, statistics: Statistics) -> tuple[Term, ...]:
    """Terms with the ``int(density * n)`` magnitudes that follow the ``int(gamma * n)`` largest.

    With the paper's percentiles, ``gamma`` is one minus its gamma and ``density`` its gamma minus its beta. Where the
    two do not fit together, fewer outliers go (as in mergekit), so that a density of one is the whole task vector.
    """

    def ranks(index: int, density: float, count: int) -> tuple[int, int]:
        kept = int(density * count)
        outliers = min(int(values["gamma"][index] * count), count - kept)
        return outliers, outliers + kept

    return trimmed(values, statistics, ranks)


@mix_method(
    "breadcrumbs",
    WEIGHT,
    DENSITY,
    GAMMA,
    LAMBDA,
    NO_NORMALIZE,
    NO_RESCALE,
    SCOPE,
    summary="task vectors without outliers and small perturbations, summed (arXiv 2312.06795)",
    family="sparse",
    base="required",
    idempotent=True,
    check=check_normalisable,
    unchanged=unchanged_task,
)
def breadcrumbs(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum w_i m_i tau_i`` with masks of the middle magnitudes.

    The paper masks layer by layer, as ``scope: tensor`` does with every tensor; ``scope: layer`` ranks the magnitudes
    of all tensors of a layer together, ``scope: model`` those of the whole model. ``rescale`` restores the sum of
    magnitudes of each tensor. For many models whose largest changes are outliers rather than skills: the paper
    keeps the tenth of the magnitudes below the largest hundredth.
    """
    return fused(_crumbs(values, statistics), values, elect=False)


@mix_method(
    "breadcrumbs_ties",
    WEIGHT,
    DENSITY,
    GAMMA,
    LAMBDA,
    NO_NORMALIZE,
    NO_RESCALE,
    SCOPE,
    summary="task vectors without outliers and small perturbations, merged where their signs agree",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
)
def breadcrumbs_ties(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum_A w_i m_i tau_i / sum_A w_i``, ``A`` the inputs that agree with the elected sign.

    Breadcrumbs' masks (arXiv 2312.06795) in place of the trimming step of TIES (arXiv 2306.01708), as mergekit has it:
    the sum is divided with ``normalize`` alone. For models with outliers that contradict each other besides.
    """
    return fused(_crumbs(values, statistics), values, elect=True)
