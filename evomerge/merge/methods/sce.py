"""SCE: select elements by variance, calculate weights, erase minority signs (FuseChat, arXiv 2408.07990)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evomerge.merge.methods.blocks import Number, blocks, quotient, sum_of_squares
from evomerge.merge.methods.parameters import READING
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.sphere import finite
from evomerge.recipes.method_spec import ParameterSpec

_MERGEKITS_ZERO = 1e-6


@merge_method(
    "sce",
    ParameterSpec(
        "select_topk",
        1.0,
        low=0.1,
        high=1.0,
        minimum=0.0,
        maximum=1.0,
        searched=True,
        summary="share of the elements, those that differ most between models, that is merged",
    ),
    READING,
    summary="elements that differ most, weighted by energy, averaged where their signs agree (arXiv 2408.07990)",
    family="sparse",
    base="required",
    idempotent=True,
)
def sce(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, context: Context, select_topk: float, reading: str
) -> torch.Tensor:
    """``theta_0 + sum_A e_i tau_i / sum_A e_i``, with ``e_i = mean tau_i^2`` and ``A`` the inputs of the elected sign.

    Select, calculate, erase, of FuseChat: for models that were tuned towards one target by several teachers. Select
    the ``int(select_topk * n)`` elements, of the ``n`` that differ at all, whose variance across task vectors is
    largest; of equals the earlier. Calculate each model's weight: its mean square over the sum of them. Erase the
    elements whose sign is not that of the unweighted sum. What is left is averaged with the weights. One model alone
    has no variance: it is itself, or the base where there is a selection.

    mergekit takes sums of mean squares below 1e-6 for zero, which those of most fine-tuned models are, and then
    weights models equally; the authors' own code does so for zero only.
    """
    if len(inputs) == 1 and select_topk >= 1:
        return inputs[0]
    flat, origin, result = [x.reshape(-1) for x in inputs], base.reshape(-1), base.new_empty(base.numel())
    chosen = _selected(flat, origin, select_topk) if select_topk < 1 else None
    least = _MERGEKITS_ZERO if reading == "mergekit" else 0.0
    weights = _weights(flat, origin, chosen, least)
    for block in blocks(base.numel(), base.device):
        tasks = _tasks(flat, origin, chosen, block)
        total = torch.zeros_like(tasks[0])
        for task in tasks:
            total.add_(task)
        sign = (total >= 0).float().mul_(2).sub_(1)
        mean, divisor = total.zero_(), torch.zeros_like(total)
        for task, weight in zip(tasks, weights, strict=True):
            agrees = (task * sign) > 0
            mean.add_(task.mul_(weight).mul_(agrees))
            divisor.add_(agrees * weight)
        divisor = divisor.clamp_min_(least) if least else divisor.masked_fill_(divisor == 0, 1)
        torch.add(mean.div_(divisor), origin[block], out=result[block])
    return result.view(base.shape)


def _tasks(
    flat: Sequence[torch.Tensor], base: torch.Tensor, chosen: torch.Tensor | None, block: slice
) -> list[torch.Tensor]:
    """A block of the task vectors, zero where not chosen."""
    tasks = [x[block] - base[block] for x in flat]
    return tasks if chosen is None else [task.mul_(chosen[block]) for task in tasks]


def _selected(flat: Sequence[torch.Tensor], base: torch.Tensor, share: float) -> torch.Tensor:
    """Which elements have the largest variance: bool, flat.

    Raises:
        PoolError: inputs have values that are not finite.
    """
    variance = torch.empty_like(base)
    for block in blocks(len(base), base.device):
        tasks = [(x[block] - base[block]).double() for x in flat]
        mean, squares = torch.zeros_like(tasks[0]), torch.zeros_like(tasks[0])
        for task in tasks:
            mean.add_(task)
        count = torch.full((), len(tasks), dtype=torch.float64, device=base.device)  # see `blocks.quotient`
        mean.div_(count)
        for task in tasks:
            squares.add_(task.sub_(mean).square_())
        variance[block] = squares.div_(count)
        if base.device.type == "cpu" and not torch.isfinite(squares.sum()):
            finite(np.diag(np.array([sum_of_squares(x[block] - base[block]) for x in flat], np.float64)))
    differing = torch.count_nonzero(variance)
    if base.device.type == "cpu":
        return largest(variance, int(share * int(differing)))
    return largest_there(variance, (differing.double() * share).long())


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` largest of flat values of the host that are not negative lie, of equals the earlier: bool."""
    chosen = torch.zeros(values.shape, dtype=torch.bool)
    if not count:
        return chosen
    at = len(values) - count
    least = float(np.partition(values.numpy(), at)[at])
    torch.gt(values, least, out=chosen)
    equal = torch.nonzero(values == least).view(-1)
    chosen[equal[: count - int(torch.count_nonzero(chosen))]] = True
    return chosen


def largest_there(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`largest` without waiting for an accelerator: `count` is a tensor of no dimension, int64."""
    if not len(values):
        return torch.zeros(0, dtype=torch.bool, device=values.device)
    least = values.sort().values.gather(0, (len(values) - count).clamp_max(len(values) - 1).view(1))
    larger, equal = values > least, values == least
    return larger | (equal & (equal.cumsum(0) <= count - torch.count_nonzero(larger)))


def _weights(
    flat: Sequence[torch.Tensor], base: torch.Tensor, chosen: torch.Tensor | None, zero: float
) -> list[Number]:
    """Mean squares of the chosen elements over their sum; equal weights where that is below or equal to `zero`.

    Raises:
        PoolError: inputs have values that are not finite.
    """
    squares: list[Number] = [0.0] * len(flat)
    for block in blocks(len(base), base.device):
        for i, task in enumerate(_tasks(flat, base, chosen, block)):
            squares[i] += quotient(sum_of_squares(task), len(base))
    total, equal = sum(squares), 1 / len(flat)
    if isinstance(total, torch.Tensor):  # where it is not finite, nor is the result
        return [torch.where(total <= zero, equal, square / total).float() for square in squares]
    finite(np.diag(np.array(squares, np.float64)))
    return [square / total for square in squares] if total > zero else [equal] * len(flat)
