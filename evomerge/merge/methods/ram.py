"""Reinforced Agent Merging: average what several models changed, keep what only one did (arXiv 2601.13572)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.blocks import Number, blocks, factor, number
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.recipes.method_spec import ParameterSpec

EPSILON = ParameterSpec("epsilon", 1e-5, low=0.0, high=1e-3, minimum=0.0, summary="smaller changes than this are none")
STRENGTH = ParameterSpec(
    "r", 0.1, low=0.0, high=1.0, minimum=0.0, searched=True, summary="how much more unique changes count by overlap"
)
LIMIT = ParameterSpec("alpha", 0.2, low=0.0, high=1.0, minimum=0.0, summary="largest overlap ratio that counts")


def _changes(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Task vectors with changes up to `epsilon` set to zero, and how many changed each element (float32)."""
    tasks, count = [], torch.zeros_like(base)
    for x in inputs:
        task = x - base
        changed = task.abs() > epsilon
        tasks.append(task.mul_(changed))
        count.add_(changed)
    return tasks, count


def _summed(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tasks[0].clone()
    for task in tasks[1:]:
        total.add_(task)
    return total


@merge_method(
    "ram",
    EPSILON,
    summary="changes of one model kept, changes of several averaged (Reinforced Agent Merging, arXiv 2601.13572)",
    family="choices",
    base="required",
    idempotent=True,
    elementwise=True,
)
def ram(inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, epsilon: float) -> torch.Tensor:
    """``theta_0 + sum_i m_i tau_i / c``: ``m_i`` where model ``i`` changed by more than epsilon, ``c`` how many did.

    For agents tuned by reinforcement learning, whose changes are sparse: what one model alone changed is not diluted.
    """
    if len(inputs) == 1:
        return torch.where((inputs[0] - base).abs() > epsilon, inputs[0], base)
    tasks, count = _changes(inputs, base, epsilon)
    return _summed(tasks).div_(count.clamp_min_(1)).add_(base)


@merge_method(
    "ramplus_tl",
    STRENGTH,
    LIMIT,
    EPSILON,
    summary="ram, with unique changes rescaled by how much a model's changes overlap the others' (RAM+ per tensor)",
    family="choices",
    base="required",
    idempotent=True,
)
def ramplus_tl(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, r: float, alpha: float, epsilon: float
) -> torch.Tensor:
    """`ram` with the changes that only model ``i`` made times ``1 + r min(rho_i, alpha)``.

    ``rho_i`` is the number of elements that it and others changed over the number that it alone changed. The paper
    (arXiv 2601.13572) counts over the whole model; like mergekit's method of this name, this counts tensor by tensor.
    For what `ram` is for, where averaging shared changes leaves too little of the others.
    """
    if len(inputs) == 1:
        return ram(inputs, base, context=context, epsilon=epsilon)
    flat, origin, result = [x.reshape(-1) for x in inputs], base.reshape(-1), base.new_empty(base.numel())
    shared: list[Number] = [0.0] * len(inputs)
    unique: list[Number] = [0.0] * len(inputs)
    for block in blocks(base.numel(), base.device):
        tasks, count = _changes([x[block] for x in flat], origin[block], epsilon)
        for i, task in enumerate(tasks):
            changed = task != 0
            unique[i] += number(torch.count_nonzero(changed & (count == 1)).double())
            shared[i] += number(torch.count_nonzero(changed & (count > 1)).double())
    factors = [factor(_rescaling(s, u, r, alpha)) for s, u in zip(shared, unique, strict=True)]
    for block in blocks(base.numel(), base.device):
        tasks, count = _changes([x[block] for x in flat], origin[block], epsilon)
        mean = _summed(tasks).div_(count.clamp(min=1))
        rescaled = _summed([task.mul_(own) for task, own in zip(tasks, factors, strict=True)])
        torch.add(torch.where(count == 1, rescaled, mean), origin[block], out=result[block])
    return result.view(base.shape)


def _rescaling(shared: Number, unique: Number, r: float, alpha: float) -> Number:
    """``1 + r min(shared / unique, alpha)``; 1 where there are no unique changes: there are none to rescale."""
    if isinstance(shared, torch.Tensor) and isinstance(unique, torch.Tensor):
        return torch.where(unique > 0, 1 + r * (shared / unique).clamp_max(alpha), 1.0)
    return float(1 + r * min(shared / unique, alpha)) if unique else 1.0
