"""DELLA: drop task-vector elements at random, the smaller of a row the likelier (arXiv 2406.11617)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.merge.methods.blocks import Number, blocks, sum_of_magnitudes
from evomerge.merge.methods.parameters import (
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    NORMALIZE,
    RESCALE,
    RESCALE_BY,
    WEIGHT,
    check_normalisable,
    unchanged_task,
)
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.task_vectors import fused, restorable
from evomerge.merge.mixes.magnitude_order import by_magnitude, row_width
from evomerge.merge.mixes.masks import kept_up_to, restore_
from evomerge.merge.mixes.mix import Mix, Pruning, Statistics, Term
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.recipes.method_spec import ParameterSpec

EPSILON = ParameterSpec(
    "epsilon",
    0.15,
    low=0.0,
    high=0.3,
    per_input=True,
    minimum=0.0,
    maximum=0.5,
    summary="largest difference of an element's probability of staying from the density",
)


class _Pruning:
    """MagPrune: what is left of the rows of one input's task vector.

    An element of rank ``r`` in its row of ``n``, by falling magnitude and of equals the earlier first, stays with
    probability ``density + epsilon (1 - 2 r / (n - 1))``. The rows of a tensor are what belongs to an index of its
    first dimension; a vector is one row. An epsilon that would lead out of [0, 1] is as large as it can be.

    Args:
        index: of the input.
        width: elements of a row.
        device: where its rows are.

    Attributes:
        bounds: the largest random numbers that stay, by rank: int32, on the device.
        by_probability: whether survivors are divided by their probability.
    """

    def __init__(self, values: Values, index: int, width: int, device: torch.device) -> None:
        density = min(1.0, max(0.0, float(values["density"][index])))
        epsilon = min(float(values["epsilon"][index]), density, 1 - density)
        self.index, self.whole = index, density >= 1
        self.by_probability = bool(values["rescale"]) and values["rescale_by"] == "probability"
        slope = 2 * torch.arange(width, dtype=torch.float64, device=device)
        # By a tensor: devices multiply by the reciprocal of a number, which rounds twice.
        slope /= torch.full((), max(1, width - 1), dtype=torch.float64, device=device)
        self.bounds = kept_up_to(density - epsilon * (slope - (1.0 if width > 1 else 0.0)))

    def kept(self, rows: torch.Tensor, base: torch.Tensor, context: Context, start: int) -> torch.Tensor:
        """Rows of the task vector, pruned, each survivor divided by its probability where that is asked for.

        Args:
            rows, base: float32, of shape ``(rows, width)``.
            context: whose masks to use.
            start: index of the first element of `rows` in the tensor.
        """
        task = rows - base
        if self.whole:
            return task
        bounds = torch.empty(task.shape, dtype=torch.int32, device=task.device)
        bounds.scatter_(1, by_magnitude(task), self.bounds.expand_as(bounds))
        context.drop_each_(self.index, bounds.view(-1), task.view(-1), start)
        if self.by_probability:
            restore_(task, bounds)
        return task


def _merged(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, context: Context, values: Values, elect: bool
) -> torch.Tensor:
    """Prune, then merge as DARE or TIES do; rows at a time, so that their ranks stay in the cache."""
    if not base.numel():
        return base
    width = row_width(tuple(base.shape))
    rows, origin = [x.reshape(-1, width) for x in inputs], base.reshape(-1, width)
    result = base.new_empty(origin.shape)
    used = {i: _Pruning(values, i, width, base.device) for i, w in enumerate(values["weight"]) if w != 0}
    shares: dict[int, Number] = dict.fromkeys(used, 1.0)
    if values["rescale"] and values["rescale_by"] == "magnitude":
        for i, pruning in used.items():
            shares[i] = _share(pruning, rows[i], origin, context)
    terms = tuple(
        Term(weight / shares[i], vote=weight) if i in used else Term(0.0) for i, weight in enumerate(values["weight"])
    )
    mix = fused(terms, values, elect=elect)._replace(differences=False)
    for block in blocks(len(result), base.device, width):
        below = origin[block]
        left = [
            used[i].kept(x[block], below, context, block.start * width).view(-1) if i in used else below.view(-1)
            for i, x in enumerate(rows)
        ]
        torch.add(mix_block(mix, left, None, (), 0).view_as(below), below, out=result[block])
    return result.view(base.shape)


def _fused(values: Values, statistics: Statistics, *, elect: bool) -> Mix | None:
    """The method as a mix by ranks; ``None`` where there are none, and where sums of magnitudes are restored."""
    if not statistics.count or (values["rescale"] and values["rescale_by"] == "magnitude"):
        return None
    width, terms = row_width(statistics.shape), []
    for i, weight in enumerate(values["weight"]):
        if weight == 0:
            terms.append(Term(0.0))
            continue
        ranks = statistics.row_ranks(i)
        if ranks is None:
            return None
        pruning = _Pruning(values, i, width, ranks.device)
        terms.append(Term(weight, pruning=Pruning(ranks, pruning.bounds, pruning.by_probability)))
    return fused(tuple(terms), values, elect=elect)


def _share(pruning: _Pruning, rows: torch.Tensor, base: torch.Tensor, context: Context) -> Number:
    """The share of the sum of magnitudes of a task vector that is left of it."""
    whole: Number = 0.0
    left: Number = 0.0
    width = base.shape[1]
    for block in blocks(len(rows), base.device, width):
        whole += sum_of_magnitudes(rows[block] - base[block])
        left += sum_of_magnitudes(pruning.kept(rows[block], base[block], context, block.start * width))
    if isinstance(whole, torch.Tensor):
        share = torch.where(whole == 0, torch.ones_like(whole), left / whole)
        return restorable(torch.where(whole.isfinite(), share, torch.full_like(share, math.nan)))
    return restorable(left / whole if math.isfinite(whole) else math.nan) if whole else 1.0


@merge_method(
    "della",
    WEIGHT,
    DENSITY,
    EPSILON,
    LAMBDA,
    NORMALIZE,
    RESCALE,
    RESCALE_BY,
    summary="task vectors dropped at random by rank of magnitude, averaged where signs agree (arXiv 2406.11617)",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
    random=True,
    mix=lambda values, statistics: _fused(values, statistics, elect=True),
)
def della(inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, **values: Any) -> torch.Tensor:
    """``theta_0 + lambda sum_A w_i m_i tau_i / p_i / sum_A w_i``, ``A`` the inputs that agree with the elected sign.

    Drop by MagPrune, elect signs, fuse what agrees. An element of rank ``r`` in its row of ``n``, by falling magnitude,
    stays with probability ``p = density + epsilon (1 - 2 r / (n - 1))``. For what `dare_ties` is for, where large
    changes shall stay more often than small ones.

    Epsilon is that of the authors' code and of mergekit, so that probabilities span twice its width. Where mergekit
    refuses a density within epsilon of zero or one, epsilon is reduced. Survivors are divided by their own
    probability, as in the paper, or by the share of the sum of magnitudes that they are, as in mergekit.
    """
    return _merged(inputs, base, context, values, elect=True)


@merge_method(
    "della_linear",
    WEIGHT,
    DENSITY,
    EPSILON,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    RESCALE_BY,
    summary="task vectors dropped at random by rank of magnitude, summed (arXiv 2406.11617)",
    family="sparse",
    base="required",
    idempotent=True,
    check=check_normalisable,
    unchanged=unchanged_task,
    random=True,
    mix=lambda values, statistics: _fused(values, statistics, elect=False),
)
def della_linear(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, **values: Any
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i m_i tau_i / p_i`` with masks of MagPrune: dropped as `della` does, summed.

    For what `dare_linear` is for, where large changes shall stay more often than small ones.
    """
    return _merged(inputs, base, context, values, elect=False)
