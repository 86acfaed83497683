"""Localize-and-Stitch without data: the largest changes of each model, averaged where they overlap (2408.13656)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from evomerge.merge.methods.blocks import Number, blocks, sum_of_magnitudes
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, DENSITY, LAMBDA, SCOPE, active, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.sphere import check_finite
from evomerge.merge.mixes.mix import Scopes


@merge_method(
    "localize_and_stitch",
    CHOSEN_WEIGHT,
    replace(DENSITY, default=0.05, low=0.01),
    LAMBDA,
    SCOPE,
    summary="each model's largest changes, averaged where they overlap (Localize-and-Stitch, arXiv 2408.13656)",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=unchanged_task,
)
def localize_and_stitch(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    scope: str,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i m_i tau_i / sum_j m_j``, with masks ``m_i`` of each model's largest magnitudes.

    The paper's dataless form: localise the ``int(density * n)`` largest changes of every model, at least
    one, of equal ones the earlier; stitch them, dividing by how many masks have an element. What no mask has is the
    base's. It is meant for models whose skills sit in few weights and are to stay apart: what one mask alone has is
    not made smaller by the others, unlike in a mean. The paper keeps 5 % of the whole model (``scope: model``); by
    default the share is that of each tensor. One model alone is grafted onto the base by its density.

    Two tensors are in memory beside the models: the magnitudes of one, in two orders.

    Raises:
        PoolError: values are NaN or infinite.
    """
    used = active(weight)
    flat, origin = [x.reshape(-1) for x in inputs], base.reshape(-1)
    if origin.device.type == "cpu":
        check_finite({i: float(sum_of_magnitudes(flat[i] - origin)) for i in used}, len(inputs))
    wide = context.scopes if scope != "tensor" else None
    masks = {}
    for i in used:
        if wide is None:
            masks[i] = _mask((flat[i] - origin).abs_(), density[i])
        else:
            masks[i] = _wide_mask(wide, i, density[i], scope)
    result = torch.empty_like(origin)
    for block in blocks(origin.numel(), origin.device):
        places = torch.arange(block.start, block.stop, device=origin.device)
        total = torch.zeros_like(origin[block])
        count = torch.zeros_like(total)
        for i, mask in masks.items():
            task = flat[i][block] - origin[block]
            kept = mask.of(task.abs(), places)
            total.add_(task.mul_(kept).mul_(weight[i]))
            count.add_(kept)
        result[block] = total.div_(count.clamp_min_(1)).mul_(lambda_).add_(origin[block])
    return result.view(base.shape)


class _Mask(NamedTuple):
    """Which magnitudes of a tensor are the largest.

    Attributes:
        least: the smallest of them: a number, or a tensor of no dimension where only an accelerator knows it.
        end: those of this magnitude count whose index is below, likewise.
    """

    least: Number
    end: int | torch.Tensor

    def of(self, sizes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Where in a block they are: bool. `places` are the indices of the block's elements."""
        return (sizes > self.least) | ((sizes == self.least) & (places < self.end))


def _wide_mask(scopes: Scopes, index: int, density: float, scope: str) -> _Mask:
    """`_mask` of a tensor's magnitudes among those of its layer or model."""
    count = _kept(scopes.size(index, scope), density)
    if not count:
        return _Mask(math.inf, 0)
    bits, end = scopes.place(index, count - 1, scope)
    return _Mask(float(np.uint32(bits).view(np.float32)), end)


def _kept(size: int, density: float) -> int:
    """How many of so many elements are kept."""
    return min(size, max(1, int(density * size))) if density > 0 else 0


def _mask(sizes: torch.Tensor, density: float) -> _Mask:
    """The mask of the share `density` of flat magnitudes, at least one of them, of equal ones the first."""
    count = _kept(len(sizes), density)
    if not count:
        return _Mask(math.inf, 0)
    at = len(sizes) - count
    if sizes.device.type == "cpu":
        least = float(np.partition(sizes.numpy(), at)[at])
        equal = torch.nonzero(sizes == least).view(-1)
        return _Mask(least, int(equal[count - int(torch.count_nonzero(sizes > least)) - 1]) + 1)
    there = sizes.sort().values[at]
    last = count - torch.count_nonzero(sizes > there)
    return _Mask(there, torch.count_nonzero((sizes == there).cumsum(0) < last) + 1)
