"""The largest change of every element: MagMax (arXiv 2407.06322) and EMR's unified task vector (arXiv 2405.17461)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method


def weighted_tasks(inputs: Sequence[torch.Tensor], base: torch.Tensor, weights: Sequence[float]) -> list[torch.Tensor]:
    """Task vectors times their weights, of the inputs whose weight is not zero: new tensors, float32."""
    return [(x - base).mul_(weight) for x, weight in zip(inputs, weights, strict=True) if weight != 0]


def _extremes(tasks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The most negative and the most positive value of every element."""
    least, most = tasks[0], tasks[0]
    for task in tasks[1:]:
        least, most = torch.minimum(least, task), torch.maximum(most, task)
    return least, most


@merge_method(
    "magmax",
    CHOSEN_WEIGHT,
    LAMBDA,
    summary="element by element the task vector of the largest magnitude (MagMax, arXiv 2407.06322)",
    family="choices",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=unchanged_task,
)
def magmax(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda tau`` with ``tau_e`` that of the ``w_i tau_i,e`` whose magnitude is largest.

    The paper's weights are 1, and its lambda is 0.5 for models that were tuned independently of each other. It is
    meant for models of a series of tasks, or of like data, whose largest changes matter most: unlike a sum it does
    not grow with the number of models.

    Of equal magnitudes with opposite signs the positive counts, so that the order of inputs does not matter; the
    authors' code takes the later model's.
    """
    tasks = weighted_tasks(inputs, base, weight)
    if not tasks:
        return base.clone()
    least, most = _extremes(tasks)
    return torch.where(most >= -least, most, least).mul_(lambda_).add_(base)


@merge_method(
    "emr",
    CHOSEN_WEIGHT,
    LAMBDA,
    summary="the elected sign's largest magnitude (unified task vector of EMR-Merging, arXiv 2405.17461)",
    family="choices",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=unchanged_task,
)
def emr(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda gamma max_i |w_i tau_i|`` over the inputs whose sign is ``gamma = sign(sum_i w_i tau_i)``.

    This is EMR-Merging's unified model (its step Elect), without the mask and the factor by task that the paper
    puts on it at inference: `emr_switch` has these. It suits models whose changes seldom contradict each other, as it
    keeps the strength of the strongest: where TIES averages what agrees, this takes the largest. Where the sum is zero
    the sign is negative, as in the authors' code.
    """
    tasks = weighted_tasks(inputs, base, weight)
    if not tasks:
        return base.clone()
    total = tasks[0].clone()
    for task in tasks[1:]:
        total.add_(task)
    least, most = _extremes(tasks)
    return torch.where(total > 0, most.clamp_min(0), least.clamp_max(0)).mul_(lambda_).add_(base)
