"""DELLA: drop task-vector elements at random, the smaller of a row the likelier (arXiv 2406.11617)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.blocks import blocks, sum_of_magnitudes
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
from evomerge.merge.mixes.masks import kept_up_to
from evomerge.merge.mixes.mix import Term
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
        device: of the tensor.
    """

    def __init__(self, values: Values, index: int, width: int, device: torch.device) -> None:
        density = min(1.0, max(0.0, float(values["density"][index])))
        epsilon = min(float(values["epsilon"][index]), density, 1 - density)
        self.index, self.whole = index, density >= 1
        self.by_probability = bool(values["rescale"]) and values["rescale_by"] == "probability"
        slope = 2 * np.arange(width) / max(1, width - 1) - (1.0 if width > 1 else 0.0)
        self._bounds = torch.from_numpy(kept_up_to(density - epsilon * slope)).to(device)

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
        bounds.scatter_(1, by_magnitude(task), self._bounds.expand_as(bounds))
        context.drop_each_(self.index, bounds.view(-1), task.view(-1), start)
        if self.by_probability:
            # The probability that the bound means, exactly; where it is zero nothing is left to divide.
            task.div_(bounds.float().add_(1).mul_(2.0**-31).clamp_min_(2.0**-31))
        return task


def by_magnitude(task: torch.Tensor) -> torch.Tensor:
    """The columns of each row by falling magnitude, of equals the earlier first: int64, of the shape of `task`.

    Args:
        task: float32, of shape ``(rows, width)``.
    """
    # Magnitudes and columns in one number sort faster than by a stable sort, and the same on every device.
    keys = task.view(torch.int32).bitwise_or(-(2**31)).bitwise_not_().to(torch.int64)
    keys = keys.bitwise_left_shift_(32).add_(torch.arange(task.shape[1], device=task.device))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(dim=1).values
    return keys.bitwise_and_(2**32 - 1)


def _merged(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, context: Context, values: Values, elect: bool
) -> torch.Tensor:
    """Prune, then merge as DARE or TIES do; rows at a time, so that their ranks stay in the cache."""
    width = base[0].numel() if base.dim() > 1 and len(base) else base.numel()
    if not base.numel():
        return base
    rows, origin = [x.reshape(-1, width) for x in inputs], base.reshape(-1, width)
    result = base.new_empty(origin.shape)
    used = {i: _Pruning(values, i, width, base.device) for i, w in enumerate(values["weight"]) if w != 0}
    shares = dict.fromkeys(used, 1.0)
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


def _share(pruning: _Pruning, rows: torch.Tensor, base: torch.Tensor, context: Context) -> float:
    """The share of the sum of magnitudes of a task vector that is left of it."""
    whole = left = 0.0
    width = base.shape[1]
    for block in blocks(len(rows), base.device, width):
        whole += sum_of_magnitudes(rows[block] - base[block])
        left += sum_of_magnitudes(pruning.kept(rows[block], base[block], context, block.start * width))
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
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
    random=True,
)
def della(inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, **values: Any) -> torch.Tensor:
    """Drop by MagPrune, elect signs, fuse what agrees.

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
    base="required",
    idempotent=True,
    check=check_normalisable,
    unchanged=unchanged_task,
    random=True,
)
def della_linear(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, **values: Any
) -> torch.Tensor:
    """Drop by MagPrune, then sum as `dare_linear` does."""
    return _merged(inputs, base, context, values, elect=False)
