"""Localize-and-Stitch without data: the largest changes of each model, averaged where they overlap (2408.13656)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from evomerge.merge.methods.blocks import blocks, sum_of_magnitudes
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, DENSITY, LAMBDA, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.sce import largest, largest_there
from evomerge.merge.methods.sphere import check_finite


@merge_method(
    "localize_and_stitch",
    CHOSEN_WEIGHT,
    replace(DENSITY, default=0.05, low=0.01),
    LAMBDA,
    summary="each model's largest changes, averaged where they overlap (Localize-and-Stitch, arXiv 2408.13656)",
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
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i m_i tau_i / sum_j m_j``, with masks ``m_i`` of each model's largest magnitudes.

    The paper's dataless form (section 3): localise the ``int(density * n)`` largest changes of every model, at least
    one, of equal ones the earlier; stitch them, dividing by how many masks have an element. What no mask has is the
    base's. It is meant for models whose skills sit in few weights and are to stay apart: what one mask alone has is
    not made smaller by the others, unlike in a mean. The paper keeps 5 % of the whole model; this, of each tensor.
    One model alone is grafted onto the base by its density.

    Masks of one byte an element are in memory beside the models, and two tensors.

    Raises:
        PoolError: values are NaN or infinite.
    """
    active = [i for i, own in enumerate(weight) if own != 0]
    flat, origin = [x.reshape(-1) for x in inputs], base.reshape(-1)
    masks, sums = {}, {}
    for i in active:
        sizes = (flat[i] - origin).abs_()
        if sizes.device.type == "cpu":
            sums[i] = float(sum_of_magnitudes(sizes))
        masks[i] = _largest(sizes, density[i])
    check_finite(sums, len(inputs))
    result = torch.empty_like(origin)
    for block in blocks(origin.numel(), origin.device):
        total = torch.zeros_like(origin[block])
        count = torch.zeros_like(total)
        for i, mask in masks.items():
            total.add_((flat[i][block] - origin[block]).mul_(mask[block]).mul_(weight[i]))
            count.add_(mask[block])
        result[block] = total.div_(count.clamp_min_(1)).mul_(lambda_).add_(origin[block])
    return result.view(base.shape)


def _largest(sizes: torch.Tensor, density: float) -> torch.Tensor:
    """Where the share `density` of the largest magnitudes lies, at least one: bool, flat."""
    count = min(len(sizes), max(1, int(density * len(sizes)))) if density > 0 else 0
    if sizes.device.type == "cpu":
        return largest(sizes, count)
    return largest_there(sizes, torch.full((), count, dtype=torch.int64, device=sizes.device))
