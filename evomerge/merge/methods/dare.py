"""DARE: drop task-vector elements at random and rescale the rest (arXiv 2311.03099)."""

from __future__ import annotations

from evomerge.merge.methods.parameters import (
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    WEIGHT,
    check_normalisable,
    divisor,
    unchanged_task,
)
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mix import Mix, Statistics, Term
from evomerge.method import ParameterSpec

RESCALE = ParameterSpec("rescale", True, kind="boolean")


def _dropped(values: Values) -> tuple[Term, ...]:
    """Terms with each element kept with probability ``density``, divided by it when ``rescale`` is set."""
    terms = []
    for weight, density in zip(values["weight"], values["density"], strict=True):
        if density >= 1 or weight == 0:
            terms.append(Term(weight))
        elif density <= 0:
            terms.append(Term(0.0))
        else:
            terms.append(Term(weight / density if values["rescale"] else weight, density=density, vote=weight))
    return tuple(terms)


@mix_method(
    "dare_linear",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    summary="randomly dropped and rescaled task vectors, summed (arXiv 2311.03099)",
    base="required",
    check=check_normalisable,
    unchanged=unchanged_task,
    random=True,
)
def dare_linear(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum w_i m_i tau_i / p_i`` with random masks ``m_i`` of density ``p_i`` (DARE, eq. 3 and 4).

    The survivors are divided by the density, as in the paper; mergekit restores the sum of magnitudes instead.
    """
    return Mix(_dropped(values), differences=True, divisor=divisor(values), scale=values["lambda_"])


@mix_method(
    "dare_ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    summary="randomly dropped and rescaled task vectors, merged where their signs agree",
    base="required",
    unchanged=unchanged_task,
    random=True,
)
def dare_ties(values: Values, statistics: Statistics) -> Mix:
    """DARE in place of the trimming step of TIES."""
    normalize, scale = values["normalize"], values["lambda_"]
    return Mix(_dropped(values), differences=True, elect=True, normalize=normalize, scale=scale)
