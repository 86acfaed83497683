"""Model Stock: how far from the base to go, from the angle between fine-tuned models (arXiv 2403.19522)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from evomerge.merge.methods.blocks import quotient
from evomerge.merge.methods.parameters import READING
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.rows import blocks, grams, one_vector, row_factors, vectors
from evomerge.merge.methods.sphere import Array, arrays_of, finite, finite_gram
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec

_SMALLEST = 1e-6  # of mergekit: a smaller product of norms is read as this, a smaller denominator as none


def ratio(gram: Array, reading: str) -> Array:
    """The share ``t`` of the average model (eq. 2).

    ``t = N cos / (1 + (N - 1) cos)``, with the mean cosine between the task vectors of each pair of models; one that
    is zero is at right angles to the others. The derivation is for angles up to 90 degrees: beyond them `t` would be
    negative, without bound towards ``cos = -1/(N - 1)``, and is zero here. As mergekit reads it `t` may be negative.

    Args:
        gram: inner products of the N task vectors, of shape ``(N, N, ...)``.
        reading: ``paper`` or ``mergekit``.

    Returns:
        `t`, of the shape of the other dimensions.
    """
    count, xp = len(gram), arrays_of(gram)
    norms = [xp.sqrt(gram[i, i]) for i in range(count)]
    cosines = []
    for i, j in itertools.combinations(range(count), 2):
        product = norms[i] * norms[j]
        if reading == "mergekit":
            product = xp.clip(product, _SMALLEST, None)
        cosines.append(xp.clip(gram[i, j] / xp.where(product > 0, product, 1.0), -1, 1))
    mean = quotient(sum(cosines), len(cosines))
    if reading == "paper":
        mean = xp.clip(mean, 0.0, None)
    denominator = 1 + (count - 1) * mean
    singular = xp.abs(denominator) < _SMALLEST
    found: Array = xp.where(singular, 0.0, count * mean / xp.where(singular, 1.0, denominator))
    return found


def _mix(values: Values, statistics: Statistics) -> Mix | None:
    if values["filter_wise"] and not one_vector(statistics.shape, -1):
        return None
    gram = finite_gram(statistics, differences=True)
    share = float(ratio(gram, values["reading"])) / len(gram)
    return weighted([share] * len(gram), differences=True)


@merge_method(
    "model_stock",
    ParameterSpec("filter_wise", False, kind="boolean", summary="an angle for each row of a tensor, not one for all"),
    READING,
    summary="between the base and the average of the models, by the angle between them (arXiv 2403.19522)",
    family="means",
    base="required",
    idempotent=True,
    min_inputs=2,
    mix=_mix,
)
def model_stock(
    inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, filter_wise: bool, reading: str, context: Context
) -> torch.Tensor:
    """``t mean(theta_i) + (1 - t) theta_0`` with ``t = N cos / (1 + (N - 1) cos)`` (eq. 2), of each tensor or row.

    ``cos`` is the mean cosine between the task vectors of each pair of the ``N`` models; where it is negative ``t`` is
    zero, and as mergekit reads it may be negative too. For two or more models that were tuned on the same data: two of
    them come as near to the centre as a mean of many. Nothing is searched.
    """
    assert base is not None
    count = len(inputs)
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    out, origin = vectors(result), vectors(base.contiguous())
    rows = [vectors(x.contiguous()) for x in inputs]
    for part in blocks(out):
        tasks = [x[part] - origin[part] for x in rows]
        shares = ratio(finite(grams(tasks)), reading)
        share = row_factors(quotient(shares, count))
        total = tasks[0]
        for task in tasks[1:]:
            total += task
        out[part] = total.mul_(share).add_(origin[part])
    return result
