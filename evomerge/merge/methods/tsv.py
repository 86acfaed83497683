"""Task singular vectors, made orthogonal to those of other tasks (TSV-M, arXiv 2412.00081)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from evomerge.merge.methods.parameters import LAMBDA, WEIGHT, active
from evomerge.merge.methods.registry import BASE, Values, derived_method
from evomerge.merge.methods.spectral import RANK, kept_rank, mean, of_matrices, polar, triplets


def _apart(values: Values) -> bool:
    """Whether the models' parts are to be known one by one."""
    return len({values["weight"][i] for i in active(values["weight"])}) > 1


def _factors(values: Values) -> tuple[float, ...]:
    weights = [float(values["lambda_"] * values["weight"][i]) for i in active(values["weight"])]
    return tuple(weights) if _apart(values) else tuple(weights[:1])


def _given(values: Values) -> Mapping[str, Hashable]:
    return {"active": tuple(active(values["weight"])), "apart": _apart(values), "rank": float(values["rank"])}


def _unchanged(values: Values) -> int | None:
    used = active(values["weight"])
    if not used or values["lambda_"] == 0:
        return BASE
    alone = len(used) == 1 and values["rank"] >= 1
    return used[0] if alone and values["lambda_"] * values["weight"][used[0]] == 1 else None


@derived_method(
    "tsv_m",
    WEIGHT,
    RANK,
    LAMBDA,
    summary="first singular triplets of every task vector, decorrelated and summed (TSV-M, arXiv 2412.00081)",
    family="svd",
    factors=_factors,
    given=_given,
    unchanged=_unchanged,
)
def tsv_m(
    tasks: Sequence[torch.Tensor], active: Sequence[int], apart: bool, rank: float
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """``theta_0 + lambda sum_i w_i U'_i S_i V'_i^T`` of the first triplets of every task vector.

    Task Singular Vectors: Reducing Task Interference in Model Merging, TSV-Merge. Of each of ``T`` models
    ``int(rank r / T)`` triplets stay, where ``r`` is the smaller side of the matrix; one at least. ``U'`` and ``V'``
    are the polar factors of the left and right vectors of all models side by side. For tasks that interfere. Directions
    that are rounding, or combinations of others (equal models), are left out, where the authors' code has what LAPACK
    makes up for them. Tensors that are no matrices are averaged, by weight; embeddings and heads are matrices. A model
    of weight zero is not there; one alone is kept whole.

    Found once per pool for each ``rank``: weights and ``lambda`` are factors on what is each model's, and a candidate
    costs what task arithmetic costs. Kept in four bytes per element, times the number of models where their weights
    differ. Finding takes about eight copies of a tensor in float64, and two more of every model's share.
    """
    chosen = [tasks[i] for i in active]
    if len(chosen) == 1 and rank >= 1:
        return chosen[0]
    if chosen[0].dim() != 2 or not chosen[0].numel():
        return tuple(task / len(chosen) for task in chosen) if apart else mean(chosen)
    return _decorrelated(chosen, apart=apart, rank=rank)


@of_matrices
def _decorrelated(tasks: Sequence[torch.Tensor], apart: bool, rank: float) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Each model's part, or the sum of them."""
    most = kept_rank(tasks[0], rank, len(tasks))
    found = [triplets(task, most) for task in tasks]
    counts = [len(each.s) for each in found]
    left = polar(torch.cat([each.u for each in found], 1)).split(counts, 1)
    right = polar(torch.cat([each.vh for each in found])).split(counts)
    parts = [u * each.s @ vh for u, each, vh in zip(left, found, right, strict=True)]
    return tuple(part.float() for part in parts) if apart else torch.stack(parts).sum(0)
