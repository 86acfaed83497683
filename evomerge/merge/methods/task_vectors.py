"""What methods that drop elements of task vectors share: cuts, rescaling, and how the rest is summed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from evomerge.errors import PoolError
from evomerge.merge.methods.blocks import Number
from evomerge.merge.methods.parameters import divisor
from evomerge.merge.methods.registry import Values
from evomerge.merge.mixes.mix import Mix, Statistics, Term

_LEAST_SHARE = 1e-12  # what is less of a task vector is rounding, and no factor brings it back


def fused(terms: tuple[Term, ...], values: Values, *, elect: bool) -> Mix:
    """``theta_0 + lambda sum_i t_i`` of the terms, by ``normalize`` a mean; with `elect` of the elements that agree.

    Args:
        terms: what is left of the task vectors.
        values: with ``weight``, ``normalize`` and ``lambda_``.
        elect: sum only elements of the sign of the weighted sum (TIES); a mean is then one of what agrees.
    """
    scale = values["lambda_"]
    if elect:
        return Mix(terms, differences=True, elect=True, normalize=values["normalize"], scale=scale)
    return Mix(terms, differences=True, divisor=divisor(values), scale=scale)


def trimmed(
    values: Values, statistics: Statistics, ranks: Callable[[int, float, int], tuple[int, int]]
) -> tuple[Term, ...]:
    """Terms with the elements of some ranks of magnitude, and all of a density of one.

    Args:
        values: with ``weight``, ``density``, ``rescale`` and perhaps ``scope``, over what magnitudes are ranked.
        statistics: of the tensor.
        ranks: ``ranks(index, density, count) -> (first, last)``: of so many elements the ranks ``first <= rank < last``
            by falling magnitude stay.
    """
    scope: str = values.get("scope", "tensor")
    terms = []
    for i, (weight, density) in enumerate(zip(values["weight"], values["density"], strict=True)):
        if weight == 0 or density >= 1:
            terms.append(Term(weight))
            continue
        first, last = ranks(i, density, statistics.size(i, scope))
        if last <= first:
            terms.append(Term(0.0))
            continue
        cut = statistics.cut(i, first, last, scope)
        share: Number = 1.0
        if values["rescale"] and cut is not None:
            share = restorable(statistics.magnitude_kept(i, cut, None))
        terms.append(Term(weight / share, cut, vote=weight))
    return tuple(terms)


def restorable(share: Number) -> Number:
    """What to divide by so that the sum of magnitudes is what it was: the share of it that is left, 1 where none is.

    A tensor stays what it is: where it is no number, nor is the result, which is found there.

    Raises:
        PoolError: it is not a number, as the task vector has values that are not finite.
    """
    if isinstance(share, torch.Tensor):
        return torch.where(share <= _LEAST_SHARE, torch.ones_like(share), share)
    if not math.isfinite(share):
        raise PoolError(
            "an input of the merge, or its base, has values that are NaN or infinite",
            "a sum of magnitudes needs finite values",
            "repair the model, leave it out or set rescale to false",
        )
    return share if share > _LEAST_SHARE else 1.0
