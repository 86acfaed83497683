"""Weighted sums of models, and of task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.merge.methods.arithmetic import check_normalisable, coefficients, only_active, weighted_sum
from evomerge.merge.methods.registry import BASE, Context, Values, merge_method
from evomerge.method import ParameterSpec

WEIGHT = ParameterSpec("weight", 1.0, low=0.0, high=1.0, per_input=True)
LAMBDA = ParameterSpec("lambda", 1.0, low=0.0, high=2.0)
NORMALIZE = ParameterSpec("normalize", True, kind="boolean")
NO_NORMALIZE = ParameterSpec("normalize", False, kind="boolean")


def _linear_unchanged(values: Values) -> int | None:
    index = only_active(values["weight"])
    return index if index is not None and (values["normalize"] or values["weight"][index] == 1) else None


@merge_method(
    "linear",
    WEIGHT,
    NORMALIZE,
    summary="weighted sum of the models (model soups, arXiv 2203.05482)",
    elementwise=True,
    check=check_normalisable,
    unchanged=_linear_unchanged,
)
def linear(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    normalize: bool,
    context: Context,
) -> torch.Tensor:
    """Sum of ``w_i theta_i``, divided by the sum of weights when `normalize` is set.

    Raises:
        InfeasibleError: the weights to normalise sum to zero.
    """
    return weighted_sum(inputs, coefficients(weight, normalize))


def unchanged_task(values: Values) -> int | None:
    """Methods of task vectors: one input kept whole with a factor of one is itself; none is the base."""
    index = only_active(values["weight"])
    if index is None:
        none = not any(values["weight"]) and not values["normalize"]
        return BASE if none or values["lambda_"] == 0 else None
    factor = values["lambda_"] * (1 if values["normalize"] else values["weight"][index])
    whole = "density" not in values or values["density"][index] >= 1
    return index if whole and factor == 1 else None


@merge_method(
    "task_arithmetic",
    WEIGHT,
    LAMBDA,
    NO_NORMALIZE,
    summary="base plus a weighted sum of task vectors (arXiv 2212.04089)",
    base="required",
    elementwise=True,
    check=check_normalisable,
    unchanged=unchanged_task,
)
def task_arithmetic(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    lambda_: float,
    normalize: bool,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum w_i (theta_i - theta_0)``.

    Computed as ``(1 - lambda sum w_i) theta_0 + lambda sum w_i theta_i``: no task vector is formed, and one model
    of weight one comes out exactly.

    Raises:
        InfeasibleError: the weights to normalise sum to zero.
    """
    scaled = [lambda_ * c for c in coefficients(weight, normalize)]
    return weighted_sum([*inputs, base], [*scaled, 1 - math.fsum(scaled)])
