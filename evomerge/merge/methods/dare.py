"""DARE: drop task-vector elements at random and rescale the rest (arXiv 2311.03099)."""

from __future__ import annotations

from evomerge.merge.methods.blocks import Number
from evomerge.merge.methods.parameters import (
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    RESCALE_BY,
    WEIGHT,
    check_normalisable,
    unchanged_task,
)
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.methods.task_vectors import fused, restorable
from evomerge.merge.mixes.masks import kept_below
from evomerge.merge.mixes.mix import Mix, Statistics, Term


def _dropped(values: Values, statistics: Statistics) -> tuple[Term, ...]:
    """Terms with each element kept with probability ``density``, and rescaled when ``rescale`` is set."""
    terms = []
    for i, (weight, density) in enumerate(zip(values["weight"], values["density"], strict=True)):
        if weight == 0 or density >= 1:
            terms.append(Term(weight))
            continue
        if not kept_below(density):
            terms.append(Term(0.0))
            continue
        share: Number = 1.0
        if values["rescale"]:
            by_probability = values["rescale_by"] == "probability"
            share = density if by_probability else restorable(statistics.magnitude_kept(i, None, density))
        terms.append(Term(weight / share, density=density, vote=weight))
    return tuple(terms)


@mix_method(
    "dare_linear",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    RESCALE_BY,
    summary="randomly dropped and rescaled task vectors, summed (arXiv 2311.03099)",
    family="sparse",
    base="required",
    idempotent=True,
    check=check_normalisable,
    unchanged=unchanged_task,
    random=True,
)
def dare_linear(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum w_i m_i tau_i / p_i`` with random masks ``m_i`` of density ``p_i`` (DARE, eq. 3 and 4).

    The survivors are divided by the density, as in the paper, or by the share of the sum of magnitudes that they
    are, as in mergekit. For models whose changes are small and many, as after fine-tuning: the paper drops nine tenths
    and more. Where changes are large, as after continued pre-training, dropping harms.
    """
    return fused(_dropped(values, statistics), values, elect=False)


@mix_method(
    "dare_ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    RESCALE_BY,
    summary="randomly dropped and rescaled task vectors, merged where their signs agree",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
    random=True,
)
def dare_ties(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum_A w_i m_i tau_i / p_i``, ``A`` the inputs that agree with the elected sign.

    DARE's masks (arXiv 2311.03099) in place of the trimming step of TIES (arXiv 2306.01708), as mergekit has it; with
    ``normalize`` the sum is divided by that of the weights of ``A``. For what `dare_linear` is for, where signs
    contradict each other.
    """
    return fused(_dropped(values, statistics), values, elect=True)
