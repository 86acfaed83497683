"""Task vectors with factors that were learnt on data: of every element (concrete masks), of every column (DAM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.parameters import LAMBDA
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import ParameterSpec

SCALE = ParameterSpec(
    "scale", 1.0, low=0.0, high=1.5, per_input=True, searched=True, summary="factor on what was learnt for it"
)


@merge_method(
    "masked",
    SCALE,
    LAMBDA,
    summary="task vectors with a mask learnt on data (concrete subspace learning, arXiv 2312.06173)",
    family="statistics",
    base="required",
    idempotent=True,
    elementwise=True,
    statistics="mask",
)
def masked(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    scale: Sequence[float],
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum s_i m tau_i``, element by element; without a mask ``m`` is 1.

    Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion. For models whose tasks
    share some weights and not others. ``evomerge learn learning.method=concrete`` learns the mask, one for all task
    vectors, and divides it by its mean over the tensor; the coefficient that it was learnt with is the ``lambda``
    of the recipe that it writes.
    """
    learnt = [context.statistic(i) for i in range(len(inputs))]
    factors = [1.0 if own is None else own.values.view(base.shape) for own in learnt]
    return _sum(inputs, base, scale, lambda_, factors)


@merge_method(
    "columns",
    SCALE,
    LAMBDA,
    summary="task vectors with factors of columns learnt on data (differentiable adaptive merging, arXiv 2410.08371)",
    family="statistics",
    base="required",
    idempotent=True,
    statistics="columns",
)
def columns(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    scale: Sequence[float],
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum s_i c_i tau_i``, where ``c_i`` has a number for every input of a layer; without it 1/n.

    Merging in a Bottle: Differentiable Adaptive Merging (DAM). A number for every column of a linear layer's or an
    embedding's weight, for every element of a norm, and one for a bias or an array of more dimensions, of each
    model. The paper sums the models' weights themselves, ``sum c_i theta_i``, with the base as one of them or not at
    all; here the base has what the others leave, ``1 - sum c_i``, which is the same where they sum to one, as they do
    in the beginning. ``evomerge learn learning.method=dam`` learns them.
    """
    factors = [_column(context.statistic(i), inputs[i].dim(), len(inputs)) for i in range(len(inputs))]
    return _sum(inputs, base, scale, lambda_, factors)


def _column(own: Statistic | None, dimensions: int, count: int) -> torch.Tensor | float:
    """Factors in the shape of the tensor, but for the axes along which they are the same."""
    return 1.0 / count if own is None else spread(own.values, own.axis, dimensions)


def spread(values: torch.Tensor, axis: int, dimensions: int) -> torch.Tensor:
    """Numbers along an axis, shape ``(n,)``, with sides of 1 on all others: what multiplies a tensor's columns."""
    shape = [1] * dimensions
    if dimensions:
        shape[axis] = len(values)
    return values.view(shape)


def _sum(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    scale: Sequence[float],
    factor: float,
    learnt: Sequence[torch.Tensor | float],
) -> torch.Tensor:
    found = base.clone()
    for x, own, each in zip(inputs, scale, learnt, strict=True):
        found += (x - base).mul_(factor * own).mul_(each)
    return found
