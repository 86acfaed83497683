"""TIES: trim task vectors, elect a sign per element, average what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.linear import LAMBDA, NORMALIZE, WEIGHT, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.method import ParameterSpec

DENSITY = ParameterSpec("density", 1.0, low=0.1, high=1.0, per_input=True, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class Cut:
    """Where a task vector is trimmed.

    Attributes:
        bound: magnitudes up to this one are dropped.
        threshold: the least magnitude that is kept.
        first: index from which elements of just that magnitude are dropped as well; ``None``: all are kept.
    """

    bound: float
    threshold: float
    first: int | None = None


def cut_of(task: torch.Tensor, density: float) -> Cut | None:
    """Where to trim a flat task vector so that its ``int(density * n)`` largest magnitudes, at least one, stay.

    Among equal magnitudes the first elements stay, so that the number is exact and the choice is the same
    on every device. ``None`` where nothing but zeros would be dropped.
    """
    count = task.numel()
    keep = max(1, int(density * count))
    if keep >= count:
        return None
    size = task.abs()
    if size.device.type == "cpu":
        ordered = np.partition(size.numpy(), count - keep)
        threshold = float(ordered[count - keep])
        is_exact = float(ordered[: count - keep].max()) < threshold
    else:
        threshold = float(torch.kthvalue(size, count - keep + 1).values)
        is_exact = int(torch.count_nonzero(size >= threshold)) == keep
    if threshold == 0:
        return None
    bound = float(np.nextafter(np.float32(threshold), np.float32(0)))
    if is_exact:
        return Cut(bound, threshold)
    equal = torch.nonzero(size == threshold).view(-1)
    return Cut(bound, threshold, int(equal[keep - int(torch.count_nonzero(size > threshold))]))


def _cuts(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, weight: Sequence[float], density: Sequence[float], **_: Any
) -> dict[str, Any]:
    """The cut of every input that is trimmed and used."""
    given = zip(inputs, weight, density, strict=True)
    return {"cuts": tuple(cut_of(x - base, d) if w != 0 and 0 < d < 1 else None for x, w, d in given)}


def trimmed(task: torch.Tensor, cut: Cut | None, offset: int) -> torch.Tensor:
    """A flat block of a task vector with what lies outside the cut set to zero.

    `offset` is the index of the block's first element in the tensor.
    """
    if cut is None:
        return task
    kept = torch.nn.functional.hardshrink(task, cut.bound)
    if cut.first is not None and offset + task.numel() > cut.first:
        tail = kept[max(0, cut.first - offset) :]
        tail.masked_fill_(tail.abs() == cut.threshold, 0)
    return kept


def elect(
    base: torch.Tensor, tasks: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool, scale: float
) -> torch.Tensor:
    """``base + scale * mean`` of the weighted task vectors that agree with the elected sign (TIES steps 2 and 3).

    The sign is that of the weighted sum, positive where it is zero. The mean is divided by the weights of those
    that agree when `normalize` is set, else it is their sum. `tasks` are overwritten.
    """
    sign = torch.zeros_like(base)
    for task, weight in zip(tasks, weights, strict=True):
        sign.add_(task.mul_(weight))
    sign.ge_(0).mul_(2).sub_(1)
    mean, divisor = torch.zeros_like(base), torch.zeros_like(base) if normalize else None
    for task, weight in zip(tasks, weights, strict=True):
        agreeing = task.mul_(sign).clamp_(min=0)
        mean.add_(agreeing)
        if divisor is not None:
            divisor.add_(agreeing.sign_(), alpha=weight)
    if divisor is not None:
        mean.div_(_without_zeros_(divisor, weights))
    mean.mul_(sign)
    if scale != 1:
        mean.mul_(scale)
    return mean.add_(base)


def _without_zeros_(divisor: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Replace the zeros of a sum of some of the weights, in place."""
    least = min(abs(weight) for weight in weights) / 2
    if min(weights) > 0:
        return divisor.clamp_(min=least)  # zero only where nothing agrees, so that the mean is zero too
    # Weights of both signs can cancel; what is left of them is rounding, not a divisor.
    return divisor.masked_fill_(divisor.abs() <= 1e-6 * sum(abs(weight) for weight in weights), 1)


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
    factor = lambda_ * (1 if normalize else weight[active[0]])
    if len(active) == 1 and cuts[active[0]] is None and factor == 1:
        return inputs[active[0]].clone()  # exactly: a task vector added back to the base is rounded twice
    tasks = [trimmed(inputs[i] - base, cuts[i], context.offset) for i in active]
    return elect(base, tasks, [weight[i] for i in active], normalize, lambda_)
