"""Sums of adapters with trimmed factors: the operator of Evo-Merging (arXiv 2509.12951)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from evomerge.merge.methods.derived import Pair
from evomerge.merge.methods.parameters import DENSITY, LAMBDA, WEIGHT, active
from evomerge.merge.methods.registry import BASE, Values, derived_method
from evomerge.merge.methods.spectral import on_one_thread, scale_of, triplets
from evomerge.recipes.method_spec import ParameterSpec

SIGNED = replace(WEIGHT, low=-1.5, high=1.5, summary="signed factor on both of its factors")
KEPT = replace(DENSITY, low=0.0, initial=1.0, summary="share of the elements of its A, by magnitude, that is kept")
CROSS = ParameterSpec(
    "cross",
    False,
    kind="boolean",
    summary="multiply the sums of factors, as published, every adapter's B with every other's A too; else sum products",
)


def _given(values: Values) -> Mapping[str, Hashable]:
    return {
        "weight": tuple(float(weight) for weight in values["weight"]),
        "density": tuple(float(density) for density in values["density"]),
        "cross": bool(values["cross"]),
    }


def _unchanged(values: Values) -> int | None:
    """One adapter with a weight of one, untrimmed, is itself."""
    used = active(values["weight"])
    if not used or values["lambda_"] == 0:
        return BASE
    whole = len(used) == 1 and values["weight"][used[0]] == 1 and values["density"][used[0]] >= 1
    return used[0] if whole and values["lambda_"] == 1 else None


def joined(
    parts: Sequence[torch.Tensor | Pair], weight: Sequence[float], density: Sequence[float], cross: bool
) -> Pair:
    """The factors of the merged difference of a matrix: of shapes ``(rows, k)`` and ``(k, columns)``, float32.

    Args:
        parts: of every model its adapter's factors, or its task vector: that has those of its singular value
            decomposition.
        weight, density, cross: as of `lora_factors`.
    """
    used = active(weight)
    groups: dict[int, list[tuple[int, Pair]]] = {}
    for i in used:
        pair = _factors(parts[i])
        groups.setdefault(pair[1].shape[0], []).append((i, pair))
    made: list[Pair] = []
    for rank in sorted(groups, reverse=True):
        own = groups[rank]
        b = torch.stack([b * weight[i] for i, (b, _) in own])
        a = top(torch.stack([a for _, (_, a) in own]), [density[i] for i, _ in own])
        if cross:
            a = torch.stack([part * weight[i] for part, (i, _) in zip(a, own, strict=True)])
        if not cross:
            made.append((b.transpose(0, 1).reshape(b.shape[1], -1), a.reshape(-1, a.shape[2])))
        elif not made:
            made.append((b.sum(0), a.sum(0)))
        else:
            made[0][0][:, :rank] += b.sum(0)
            made[0][1][:rank] += a.sum(0)
    return torch.cat([b for b, _ in made], dim=1), torch.cat([a for _, a in made], dim=0)


def top(matrices: torch.Tensor, density: Sequence[float]) -> torch.Tensor:
    """Matrices with their ``int(density n)`` elements of largest magnitude each, of equal ones the first; else zeros.

    Args:
        matrices: of shape ``(count, rows, columns)``.
        density: of each.

    >>> top(torch.tensor([[[3.0, -1.0], [1.0, -2.0]]]), [0.75]).tolist()
    [[[3.0, -1.0], [0.0, -2.0]]]
    """
    sizes = matrices.abs().flatten(1)
    count = sizes.shape[1]
    kept = [int(own * count) for own in density]
    if min(kept) >= count:
        return matrices
    least = torch.empty(len(kept), 1, device=sizes.device)
    room = torch.empty(len(kept), 1, dtype=torch.int64, device=sizes.device)
    for row, number in enumerate(kept):
        inside = 0 < number < count
        room[row] = number  # filled in: a tensor of numbers would be copied to a GPU
        least[row] = sizes[row].kthvalue(count - number + 1).values if inside else (-1.0 if number else math.inf)
    above, equal = sizes > least, sizes == least
    chosen = above | (equal & (equal.cumsum(1) <= room - above.sum(1, keepdim=True)))
    return matrices * chosen.view_as(matrices)


@derived_method(
    "lora_factors",
    SIGNED,
    KEPT,
    CROSS,
    LAMBDA,
    summary="adapters with A trimmed and signed weights, as products or sums (Evo-Merging, arXiv 2509.12951)",
    family="sparse",
    factors=scale_of,
    given=_given,
    unchanged=_unchanged,
    join=joined,
    changing=True,
    cubic=False,
)
def lora_factors(
    parts: Sequence[torch.Tensor | Pair], weight: Sequence[float], density: Sequence[float], cross: bool
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i B_i Top(A_i)``, or ``theta_0 + lambda (sum_i w_i B_i) (sum_j w_j Top(A_j))``.

    The operator of Black-box Model Merging for Language-Model-as-a-Service with Massive Model Repositories. ``Top``
    keeps the share ``density`` of the elements of ``A`` that are largest in magnitude; ``B`` stays whole. The second
    form, ``cross``, is the published code's. Its result has the rank of one adapter, whatever their number; but an
    adapter alone counts by the square of its weight, whose sign is lost, of N adapters with weights of ``1 / N`` each
    counts ``1 / N^2``, and every ``B_i`` also meets every ``A_j``, for which no adapter was trained. In the first form
    signs are signs, and ranks add up. Factors are taken as they are stored, the adapter's scale in ``B``; in the
    second form smaller ranks are filled with zeros. For adapters of one base, many of which may be of no use.

    A model that is no adapter on the base has the factors of its singular value decomposition, with the root of the
    value on either side and the largest element of each row of ``A`` positive. Tensors that are no matrices are summed
    by weight. Found anew for every candidate.
    """
    used = active(weight)
    first = parts[0]
    shape = first.shape if isinstance(first, torch.Tensor) else (first[0].shape[0], first[1].shape[1])
    if not used or (isinstance(first, torch.Tensor) and (len(shape) != 2 or not first.numel())):
        found = torch.zeros(shape, device=(first if isinstance(first, torch.Tensor) else first[0]).device)
        for i in used:
            part = parts[i]
            found += part * weight[i] if isinstance(part, torch.Tensor) else weight[i] * (part[0] @ part[1])
        return found
    with on_one_thread():
        b, a = joined(parts, weight, density, cross)
        return b @ a


def _factors(part: torch.Tensor | Pair) -> Pair:
    if not isinstance(part, torch.Tensor):
        return part
    with on_one_thread():
        found = triplets(part.double())
    roots = found.s.sqrt()
    signs = found.vh.gather(1, found.vh.abs().argmax(1, keepdim=True)).sign()
    return ((found.u * roots) * signs.T).float(), (found.vh * roots[:, None] * signs).float()
