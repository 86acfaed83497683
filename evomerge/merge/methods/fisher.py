"""Fisher merging: every weight counts by how much the model's likelihood depends on it (arXiv 2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from evomerge.errors import InfeasibleError
from evomerge.merge.methods.parameters import WEIGHT, only_active
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.recipes.method_spec import ParameterSpec

POSITIVE = replace(WEIGHT, minimum=0.0)
"""A weight of a mean whose denominator must not vanish."""
POWER = ParameterSpec(
    "power",
    1.0,
    low=0.0,
    high=1.5,
    minimum=0.0,
    maximum=4.0,
    searched=True,
    summary="of the squared gradients: 0 is the mean of the models, large ones choose one model for every element",
)
LOG_FLOOR = ParameterSpec(
    "log_floor",
    -6.0,
    low=-6.0,
    high=1.0,
    minimum=-30.0,
    maximum=30.0,
    searched=True,
    summary="logarithm to the base 10 of what is added to them, in units of their mean over the model",
)
NORMALIZE = ParameterSpec(
    "normalize",
    True,
    kind="boolean",
    summary="give squared gradients the same mean for every model: one whose likelihood is steep counts no more",
)


def check_weights(values: Values) -> None:
    """`InfeasibleError` where no input counts."""
    if not any(values["weight"]):
        raise InfeasibleError("every weight is 0", "one at least is above 0", "change the weights")


def alone(values: Values) -> int | None:
    """Which input the result is, where it is the only one that counts."""
    return only_active(values["weight"])


def plain_mean(inputs: Sequence[torch.Tensor], weight: Sequence[float]) -> torch.Tensor:
    """``sum w_i theta_i / sum w_i``, as float32: the first model and what the others differ by."""
    result, total = inputs[0].clone(), sum(weight)
    for x, own in zip(inputs[1:], weight[1:], strict=True):
        result += (x - inputs[0]) * (own / total)
    return result


@merge_method(
    "fisher",
    POSITIVE,
    POWER,
    LOG_FLOOR,
    NORMALIZE,
    summary="mean weighted by the diagonal of the Fisher information (Fisher merging, arXiv 2111.09832)",
    family="statistics",
    idempotent=True,
    elementwise=True,
    check=check_weights,
    unchanged=alone,
    statistics="fisher",
)
def fisher(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    normalize: bool,
    context: Context,
) -> torch.Tensor:
    """``sum w_i c_i theta_i / sum w_i c_i``, element by element, with ``c_i = (F_i / m_i)^power + 10^log_floor``.

    Merging Models with Fisher-Weighted Averaging, eq. 3. ``F_i`` is the mean over calibration examples of the square of
    the gradient of the log-likelihood of *one example*, and ``m_i`` its mean over all weights of the model (with
    ``normalize``; else the mean of the ``m_i``). Where no gradient says anything, the floor makes it the weighted mean
    of the models, as it is for tensors without statistics. Public code that squares the gradient of a batch's mean
    measures something else: gradients of examples cancel there. For models of different domains with some texts of
    each: what a model is sure of counts.
    """
    return weighted_mean(inputs, weight, power, log_floor, normalize, context)


def weighted_mean(
    inputs: Sequence[torch.Tensor],
    weight: Sequence[float],
    power: float,
    log_floor: float,
    normalize: bool,
    context: Context,
) -> torch.Tensor:
    """``sum w_i c_i theta_i / sum w_i c_i``; see `fisher`. What a statistic has below 0 counts as 0."""
    known = [context.statistic(i) for i in range(len(inputs))]
    if any(own is None for own in known):
        return plain_mean(inputs, weight)
    statistics = [own for own in known if own is not None]
    counted = [own.mean for own, w in zip(statistics, weight, strict=True) if w]
    shared = sum(counted) / len(counted)
    floor = 10.0**log_floor
    total, moved = torch.zeros_like(inputs[0]), torch.zeros_like(inputs[0])
    for x, own, w in zip(inputs, statistics, weight, strict=True):
        unit = own.mean if normalize else shared
        # Divided in float64: squares of small gradients are below the normal numbers of float32.
        c = (
            own.values.view(x.shape)
            .double()
            .clamp_(min=0)
            .div_(unit or 1.0)
            .pow_(power)
            .add_(floor)
            .mul_(w)
            .clamp_(max=1e37)
            .float()
        )
        total += c
        moved += c * (x - inputs[0])
    # Weights of zero, or counts that float32 rounds to it: the mean.
    found = moved.div_(torch.where(total > 0, total, 1.0)).add_(inputs[0])
    return torch.where(total > 0, found, plain_mean(inputs, weight))
