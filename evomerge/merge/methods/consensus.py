"""Consensus merging: a sum of task vectors where enough tasks need it (TALL masks, arXiv 2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.magmax import weighted_tasks
from evomerge.merge.methods.parameters import LAMBDA, WEIGHT, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.recipes.method_spec import ParameterSpec


@merge_method(
    "consensus",
    WEIGHT,
    ParameterSpec(
        "selectivity",
        0.4,
        low=0.2,
        high=0.6,
        per_input=True,
        minimum=0.0,
        searched=True,
        summary="lambda_t of its mask: the larger, the fewer elements count as its own",
    ),
    ParameterSpec(
        "k",
        2,
        low=1,
        high=3,
        kind="integer",
        minimum=0,
        searched=True,
        summary="masks that an element must be in; all of them where there are fewer",
    ),
    LAMBDA,
    summary="summed task vectors where the masks of at least k agree (Consensus, TALL masks, arXiv 2405.07813)",
    family="sparse",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=unchanged_task,
)
def consensus(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    selectivity: Sequence[float],
    k: int,
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda m tau`` with ``tau = sum_t w_t tau_t`` and ``m`` where at least k of the masks ``m_t`` are 1.

    ``m_t = |w_t tau_t| >= lambda_t |tau - w_t tau_t|``, the TALL mask, marks what task t needs of the sum; its
    ``lambda_t`` is called selectivity here. With k = 2 go the elements that one task alone needs (selfish) and those
    that none does (catastrophic), with k = 1 the latter, with k = 0 none: that is task arithmetic. It is meant for
    many models, whose sum has much that harms all of them. The paper's lambda_t are 0.2 to 0.6, chosen by validation;
    here they are genes.

    A model for each task, by its own mask, is `tall_switch`.

    The authors' code compares with ``>``, which differs only where both sides are equal. These are not the masks of
    fusion_bench's merge, which has ``|theta_0 - tau_t|`` on the left: task vectors stand there where models belong.
    """
    tasks = weighted_tasks(inputs, base, weight)
    limits = [limit for limit, own in zip(selectivity, weight, strict=True) if own != 0]
    if not tasks:
        return base.clone()
    total = tasks[0].clone()
    for task in tasks[1:]:
        total.add_(task)
    count = torch.zeros_like(base)
    for task, limit in zip(tasks, limits, strict=True):
        count.add_(task.abs() >= (total - task).abs_().mul_(limit))
    # Times the mask, not where it is: what is no number stays none.
    return total.mul_(count >= min(k, len(tasks))).mul_(lambda_).add_(base)
