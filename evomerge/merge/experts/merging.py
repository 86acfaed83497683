"""Making one expert of several, and one row of the router.

M-SMoE (arXiv 2310.01334): hidden units in the order of the dominant expert's, then means by frequency. Sub-MoE (arXiv
2506.23266): one decomposition of the experts' matrices side by side, ``[W_1 ... W_n] = U S [V_1 ... V_n]^T``, then
``U S (sum_i f_i V_i^T)``. As ``U S V_i^T`` is ``W_i``, that is the mean by frequency again unless singular values are
left out: with a `rank` below 1 it is the mean's projection on what the experts of the group share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.merge.alignment.assigning import assignment
from evomerge.merge.experts.grouping import Counts, check_groups
from evomerge.merge.experts.settings import Router
from evomerge.models.architecture.equal_experts import router_rows


@dataclass(frozen=True)
class Layer:
    """The experts of a layer.

    Attributes:
        router: of shape ``(experts, width)``.
        gate_up: of shape ``(experts, 2 units, width)``.
        down: of shape ``(experts, width, units)``.
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def merged_layer(
    layer: Layer,
    groups: Sequence[Sequence[int]],
    counts: Counts,
    *,
    align: bool = True,
    rank: float = 1.0,
    router: Router = "mean",
) -> Layer:
    """A layer with an expert for each group, in their order; means are taken in float32, single experts copied.

    Args:
        layer: in any float dtype.
        groups: experts that become one, the dominant one first. Experts of no group are dropped.
        counts: tokens that each was sent, the weights of the means; equal ones where a group was sent none.
        align: bring hidden units into the order of the dominant expert's first.
        rank: share of the singular values that a group's matrices side by side keep, above 0 up to 1.
        router: see `settings.Router`. With ``kept``, each expert of a group is a copy of the group's, so that the layer
            has as many as before and tokens go where they went: what M-SMoE computes.

    Raises:
        EvomergeError: an expert is in two groups, or in none of a router that is kept.
    """
    check_groups(groups, len(layer.router), router == "kept")
    owner = np.zeros(len(layer.router), dtype=np.int64)
    gate_up, down = [], []
    for number, group in enumerate(groups):
        owner[list(group)] = number
        weights = _shares(counts[list(group)])
        members = [(layer.gate_up[own], layer.down[own]) for own in group]
        if align:
            members = [members[0], *(in_order(members[0], own) for own in members[1:])]
        # Gates and the others are matrices of their own.
        halves = [torch.stack([own[0].chunk(2)[half] for own in members]) for half in range(2)]
        gate_up.append(torch.cat([_mean(own, weights, rank) for own in halves]))
        down.append(_mean(torch.stack([own[1] for own in members]), weights, rank))
    rows = router_rows(layer.router, groups, counts, "mean" if router == "mean" else "dominant")
    found = Layer(rows, torch.stack(gate_up), torch.stack(down))
    if router != "kept":
        return found
    places = torch.from_numpy(owner)
    return Layer(layer.router.clone(), found.gate_up[places], found.down[places])


def in_order(
    reference: tuple[torch.Tensor, torch.Tensor], expert: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """An expert with its hidden units where the reference's are that are most like them: the same function.

    Args:
        reference, expert: of shape ``(2 units, width)`` and ``(width, units)``.
    """
    sides = [(own[0].float().chunk(2), own[1].float().T) for own in (reference, expert)]
    (ours, our_down), (theirs, their_down) = sides
    products = our_down @ their_down.T
    for one, other in zip(ours, theirs, strict=True):
        products = products + one @ other.T
    order = torch.from_numpy(assignment(products.double().numpy())[0])
    gate, up = expert[0].chunk(2)
    return torch.cat([gate[order], up[order]]), expert[1][:, order]


def _shares(counts: Counts) -> torch.Tensor:
    total = counts.sum()
    shares = counts / total if total > 0 else np.full(len(counts), 1 / len(counts))
    return torch.from_numpy(shares).float()


def _mean(tensors: torch.Tensor, weights: torch.Tensor, rank: float) -> torch.Tensor:
    """The mean along the first axis, projected on the leading directions that matrices have in common."""
    if len(tensors) == 1:
        return tensors[0]
    mean = torch.tensordot(weights, tensors.float(), dims=1)
    if rank < 1:
        side_by_side = torch.cat(list(tensors.float()), dim=1)
        kept = math.ceil(rank * min(side_by_side.shape))
        leading = torch.linalg.svd(side_by_side, full_matrices=False).U[:, :kept]
        mean = leading @ (leading.T @ mean)
    found: torch.Tensor = mean.to(tensors.dtype)
    return found
