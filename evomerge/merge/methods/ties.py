"""TIES: trim task vectors, elect a sign per element, average what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.linear import LAMBDA, NORMALIZE, WEIGHT, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.method import ParameterSpec

DENSITY = ParameterSpec("density", 1.0, low=0.1, high=1.0, per_input=True, minimum=0.0, maximum=1.0)
_NO_AGREEMENT = 1e-6  # below this share of the weights their sum is rounding, not a divisor

Cut = tuple[float, int | None]
"""The least magnitude that is kept, and the index from which elements of just that magnitude are not
(``None``: all of them are kept)."""


def cut_of(task: torch.Tensor, density: float) -> Cut:
    """Where to trim a flat task vector so that its ``int(density * n)`` largest magnitudes, at least one, stay.

    Among equal magnitudes the first elements stay, so that the number is exact and the choice is the same
    on every device.
    """
    count = task.numel()
    keep = max(1, int(density * count))
    if count == 0 or keep >= count:
        return 0.0, None
    size = task.abs()
    if size.device.type == "cpu":
        array = size.numpy()
        threshold = float(np.partition(array, count - keep)[count - keep])
    else:
        threshold = float(torch.kthvalue(size, count - keep + 1).values)
    at_least = int((size >= threshold).sum())
    if at_least == keep or threshold == 0:  # zeros make no difference, kept or not
        return threshold, None
    equal = torch.nonzero(size == threshold).view(-1)
    return threshold, int(equal[keep - at_least])


def _cuts(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, weight: Sequence[float], density: Sequence[float], **_: Any
) -> dict[str, Any]:
    """The cut of every input that is trimmed and used."""
    given = zip(inputs, weight, density, strict=True)
    return {"cuts": tuple(cut_of(x - base, d) if w != 0 and 0 < d < 1 else None for x, w, d in given)}


def outside(task: torch.Tensor, cut: Cut, offset: int) -> torch.Tensor:
    """Which elements of a flat block lie outside the cut; `offset` is the index of the block's first element."""
    threshold, last = cut
    size = task.abs()
    dropped = size < threshold
    if last is not None and offset + task.numel() > last:
        tail = slice(max(0, last - offset), None)
        dropped[tail] |= size[tail] == threshold
    return dropped


def elect(
    base: torch.Tensor, tasks: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool, scale: float
) -> torch.Tensor:
    """``base + scale * mean`` of the weighted task vectors that agree with the elected sign (TIES steps 2 and 3).

    The sign is that of the weighted sum, positive where it is zero. The mean is divided by the weights of those
    that agree when `normalize` is set, else it is their sum. `tasks` are overwritten.
    """
    sign = torch.zeros_like(base)
    for task, weight in zip(tasks, weights, strict=True):
        sign.add_(task, alpha=weight)
    sign.ge_(0).mul_(2).sub_(1)
    mean, divisor = torch.zeros_like(base), torch.zeros_like(base) if normalize else None
    for task, weight in zip(tasks, weights, strict=True):
        # Agreeing entries have weight * task * sign > 0; the others become zero.
        agreeing = task.mul_(sign).clamp_(min=0) if weight > 0 else task.mul_(sign).clamp_(max=0)
        mean.add_(agreeing, alpha=weight)
        if divisor is not None:
            divisor.add_(agreeing.sign_(), alpha=abs(weight))
    if divisor is not None:
        least = _NO_AGREEMENT * sum(abs(weight) for weight in weights)
        mean.div_(divisor.masked_fill_(divisor.abs() <= least, 1))
    return mean.mul_(sign).mul_(scale).add_(base)


@merge_method(
    "ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NORMALIZE,
    summary="trimmed task vectors, averaged where their signs agree (arXiv 2306.01708)",
    base="required",
    elementwise=True,
    statistics=_cuts,
    unchanged=unchanged_task,
)
def ties(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    cuts: Sequence[Cut | None],
    context: Context,
) -> torch.Tensor:
    """TIES-merging: trim to the largest magnitudes per tensor, elect signs, merge those that agree.

    The paper trims over the whole model; like mergekit, this trims each tensor by itself, which is what a
    density per slice means.
    """
    active = [i for i, w in enumerate(weight) if w != 0 and density[i] > 0]
    if not active:
        return base.clone()
    if len(active) == 1:
        (i,) = active
        # Nothing to elect: interpolating is exact where the factor is one.
        merged = torch.lerp(base, inputs[i], lambda_ * (1 if normalize else weight[i]))
        cut = cuts[i]
        return merged if cut is None else torch.where(outside(inputs[i] - base, cut, context.offset), base, merged)
    tasks = []
    for i in active:
        task, cut = inputs[i] - base, cuts[i]
        tasks.append(task if cut is None else task.masked_fill_(outside(task, cut, context.offset), 0))
    return elect(base, tasks, [weight[i] for i in active], normalize, lambda_)
