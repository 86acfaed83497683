"""Element by element a mean of changes that is led by the largest of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.magmax import weighted_tasks
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.recipes.method_spec import ParameterSpec


@merge_method(
    "delta_guided",
    CHOSEN_WEIGHT,
    ParameterSpec(
        "power",
        1,
        low=0.0,
        high=4.0,
        kind="integer",
        minimum=0.0,
        maximum=16.0,
        searched=True,
        summary="of magnitudes: 0 for their mean; the larger, the more the largest change counts",
    ),
    LAMBDA,
    summary="element by element a mean of task vectors by their magnitudes (CoDiEmb, arXiv 2508.11442)",
    family="choices",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=unchanged_task,
)
def delta_guided(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    power: int,
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i (|t_i|^p / sum_j |t_j|^p) t_i`` of every element, with ``t_i = w_i tau_i``.

    CoDiEmb's fusion weighs every parameter of a checkpoint by how far it is from the common start: what a task did not
    touch leaves the word to those that moved it. Its exact weights are not public; with ``p`` 1 they are the
    deviations themselves, ``p`` 0 is the mean of the changes, and towards infinity it is `magmax`. For models that
    were tuned on unlike objectives, such as retrieval and similarity, and mostly move different parameters.

    Where nothing moved an element, it stays.
    """
    tasks = weighted_tasks(inputs, base, weight)
    if not tasks:
        return base.clone()
    largest = tasks[0].abs()
    for task in tasks[1:]:
        torch.maximum(largest, task.abs(), out=largest)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # powers of ratios stay within 0 and 1
    total, shares = torch.zeros_like(base), torch.zeros_like(base)
    for task in tasks:
        ratio = task.abs().div_(scale)
        share = torch.ones_like(ratio)
        for _ in range(power):  # by products, which are rounded alike wherever in a tensor an element is
            share.mul_(ratio)
        total.add_(share * task)
        shares.add_(share)
    # With a power of 0 all elements have shares; otherwise the largest has one of 1, and those that nothing moved none.
    return torch.where(shares > 0, total / shares, total).mul_(lambda_).add_(base)
