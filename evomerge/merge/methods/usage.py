"""A mean of mixtures of experts in which each expert counts by how often its model chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from evomerge.merge.methods.fisher import LOG_FLOOR, POSITIVE, POWER, alone, check_weights, plain_mean
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import ParameterSpec

COUNTS = ("choices", "weights")


@merge_method(
    "usage",
    POSITIVE,
    replace(
        POWER, summary="of the frequencies: 0 is the mean of the models, large ones choose one model for an expert"
    ),
    replace(
        LOG_FLOOR, low=-3.0, summary="logarithm to the base 10 of what is added to them, in units of an even share"
    ),
    ParameterSpec(
        "counts",
        "choices",
        kind="categorical",
        choices=COUNTS,
        summary="what a frequency is of: how often an expert is chosen, or the router's weights that it gets",
    ),
    summary="mean of experts weighted by how often each is chosen (frequency-weighted, as M-SMoE, arXiv 2310.01334)",
    family="statistics",
    idempotent=True,
    check=check_weights,
    unchanged=alone,
    statistics="routing",
)
def usage(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    counts: str,
    context: Context,
) -> torch.Tensor:
    """``sum w_i c_i theta_i / sum w_i c_i``, expert by expert, with ``c_i = (e f_i)^power + 10^log_floor``.

    ``f_i`` is the share of all choices (or of the router's weights) that falls on the expert in model ``i``, of ``e``
    experts, so that ``e f_i`` is 1 where all are used alike. Merge, Then Compress: Demystify Efficient SMoE with Hints
    from Its Routing Policy weights experts of *one* model that are merged into one so; here it is those in the same
    place of several models, fine-tunes of one base. Rows of the router count as their experts. All other tensors have
    no frequencies: the weighted mean is taken. For models of different domains, whose tokens go to different experts.
    """
    known = [context.statistic(i) for i in range(len(inputs))]
    if any(own is None for own in known):
        return plain_mean(inputs, weight)
    row = COUNTS.index(counts)
    floor = 10.0**log_floor
    total, moved = torch.zeros_like(inputs[0]), torch.zeros_like(inputs[0])
    for x, own, w in zip(inputs, [own for own in known if own is not None], weight, strict=True):
        c = _by_expert(own, row, x).mul_(own.values.shape[1]).pow_(power).add_(floor).mul_(w).clamp_(max=1e37).float()
        total += c
        moved += c * (x - inputs[0])
    # Experts that no model chooses, without a floor: the mean.
    found = moved.div_(torch.where(total > 0, total, 1.0)).add_(inputs[0])
    return torch.where(total > 0, found, plain_mean(inputs, weight))


def _by_expert(own: Statistic, row: int, x: torch.Tensor) -> torch.Tensor:
    """The share of the expert that a tensor is of, or of each along its first dimension: a factor in float64."""
    shares = own.values[row].double()
    if own.axis >= 0:
        return shares[own.axis].clone()
    return shares.clone().reshape(-1, *[1] * (x.dim() - 1))
