"""Weighted sums of models, and of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.arithmetic import check_normalisable, only_active, sum_of, weighted_sum
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
    only = only_active(weight)
    if only is not None and (normalize or weight[only] == 1):
        return inputs[only].clone()
    total = weighted_sum(inputs, weight)
    return total.div_(sum_of(tuple(weight))) if normalize else total


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
    """``theta_0 + lambda sum w_i (theta_i - theta_0)``, the sum divided by that of the weights for `normalize`.

    Raises:
        InfeasibleError: the weights to normalise sum to zero.
    """
    only = only_active(weight)
    if only is not None and lambda_ * (1 if normalize else weight[only]) == 1:
        return inputs[only].clone()  # exactly: a task vector added back to the base is rounded twice
    tasks = [x - base if w != 0 else base for x, w in zip(inputs, weight, strict=True)]
    return add_tasks(base, tasks, weight, lambda_, normalize)


def add_tasks(
    base: torch.Tensor, tasks: Sequence[torch.Tensor], weight: Sequence[float], scale: float, normalize: bool
) -> torch.Tensor:
    """The base plus `scale` times the weighted sum (or mean) of task vectors.

    Task vectors are summed before the base is added, in the order that mergekit adds them in: where models are close,
    half-precision results lie on the border between two numbers so often that another order would round
    many of them the other way.
    """
    mixed = weighted_sum(tasks, weight)
    if normalize:
        mixed.div_(sum_of(tuple(weight)))
    if scale != 1:
        mixed.mul_(scale)
    return mixed.add_(base)
