"""Consensus merging: a sum of task vectors where enough tasks need it (TALL masks, arXiv 2405.07813)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.derived import Derived
from evomerge.merge.methods.parameters import LAMBDA, WEIGHT, active, unchanged_task
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.recipes.method_spec import ParameterSpec


def _scale(weights: Sequence[float]) -> float:
    """What weights that are equal, but for zeros, are; else 1: masks do not change with a factor on all of them."""
    used = {weights[i] for i in active(weights)}
    return float(used.pop()) if len(used) == 1 else 1.0


def _given(values: Values) -> Mapping[str, Hashable]:
    weights, scale = values["weight"], _scale(values["weight"])
    return {
        "weights": tuple(weight / scale for weight in weights),
        "limits": tuple(float(limit) for limit in values["selectivity"]),
        "k": int(values["k"]),
    }


def _factors(values: Values) -> tuple[float, ...]:
    return (float(values["lambda_"] * _scale(values["weight"])) if any(values["weight"]) else 0.0,)


def _kept(tasks: Sequence[torch.Tensor], weights: Sequence[float], limits: Sequence[float], k: int) -> torch.Tensor:
    """``m tau`` of task vectors, which are written to; some weight is not zero."""
    used = active(weights)
    own = [tasks[i].mul_(weights[i]) for i in used]
    total = own[0].clone()
    for task in own[1:]:
        total.add_(task)
    count = torch.zeros_like(total)
    for i, task in zip(used, own, strict=True):
        count.add_(task.abs() >= (total - task).abs_().mul_(limits[i]))
    # Times the mask, not where it is: what is no number stays none.
    return total.mul_(count >= min(k, len(own)))


def _found(tasks: Sequence[torch.Tensor], weights: Sequence[float], limits: Sequence[float], k: int) -> torch.Tensor:
    """`_kept` of whole tensors, block by block."""
    flat, result = [task.reshape(-1) for task in tasks], torch.empty_like(tasks[0]).view(-1)
    for block in blocks(len(result), result.device):
        result[block] = _kept([task[block].clone() for task in flat], weights, limits, k)
    return result.view(tasks[0].shape)


@merge_method(
    "consensus",
    WEIGHT,
    ParameterSpec(
        "selectivity",
        0.4,
        low=0.2,
        high=0.6,
        per_input=True,
        minimum=0.0,
        searched=True,
        summary="lambda_t of its mask: the larger, the fewer elements count as its own",
    ),
    ParameterSpec(
        "k",
        2,
        low=1,
        high=3,
        kind="integer",
        minimum=0,
        searched=True,
        summary="masks that an element must be in; all of them where there are fewer",
    ),
    LAMBDA,
    summary="summed task vectors where the masks of at least k agree (Consensus, TALL masks, arXiv 2405.07813)",
    family="sparse",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=unchanged_task,
    derived=Derived(_found, _given, _factors, copies=0, changing=True, cubic=False),
)
def consensus(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    selectivity: Sequence[float],
    k: int,
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda m tau`` with ``tau = sum_t w_t tau_t`` and ``m`` where at least k of the masks ``m_t`` are 1.

    ``m_t = |w_t tau_t| >= lambda_t |tau - w_t tau_t|``, the TALL mask, marks what task t needs of the sum; its
    ``lambda_t`` is called selectivity here. With k = 2 go the elements that one task alone needs (selfish) and those
    that none does (catastrophic), with k = 1 the latter, with k = 0 none: that is task arithmetic. It is meant for
    many models, whose sum has much that harms all of them. The paper's lambda_t are 0.2 to 0.6, chosen by validation;
    here they are genes.

    A model for each task, by its own mask, is `tall_switch`.

    The authors' code compares with ``>``, which differs only where both sides are equal. These are not the masks of
    fusion_bench's merge, which has ``|theta_0 - tau_t|`` on the left: task vectors stand there where models belong.

    ``m tau`` depends on all of the selectivities, on ``k`` and on how the weights compare with each other. It is found
    once per pool where these stay, and kept in four bytes per element: candidates that differ in ``lambda``, or in one
    weight that all models share, cost what task arithmetic costs. Where any of them is searched, block by block for
    every candidate.
    """
    values = {"weight": weight, "selectivity": selectivity, "k": k, "lambda_": lambda_}
    (factor,) = _factors(values)
    if not factor:
        return base.clone()
    given: Any = _given(values)
    return _kept([x - base for x in inputs], **given).mul_(factor).add_(base)
