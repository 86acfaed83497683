"""RCP: a model's changes where its own items, and what another model must keep, vote for them (arXiv 2508.03140)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.fisher import POSITIVE
from evomerge.merge.methods.parameters import only_active
from evomerge.merge.methods.registry import BASE, Context, Values, merge_method
from evomerge.recipes.method_spec import ParameterSpec


def _unchanged(values: Values) -> int | None:
    index = only_active(values["weight"])
    if index is None:
        return None if any(values["weight"]) else BASE
    return index if values["weight"][index] == 1 else None


@merge_method(
    "rcp",
    POSITIVE,
    ParameterSpec(
        "log_lambda",
        3.0,
        low=-2.0,
        high=6.0,
        minimum=-30.0,
        maximum=30.0,
        searched=True,
        summary="logarithm to the base 10 of how much it counts what the first model would lose",
    ),
    summary="the first model, and of the others what their items vote for (RCP, arXiv 2508.03140)",
    family="statistics",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=_unchanged,
    statistics=("fisher", "sensitivity"),
)
def rcp(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    log_lambda: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + w_r tau_r + sum_d w_d m_d tau_d``: all of the first model ``r``, of every other what its mask has.

    RCP-Merging, for two models of which the first must keep what it can. Every calibration item of ``d`` votes for
    an element where ``g theta_d + lambda F_r (theta_r - theta_d)^2`` is at most 0: ``g`` is the gradient of the
    item's loss, minus its log-likelihood, in ``d``, and ``F_r`` the mean square of the gradients of the items of
    ``r``. ``m_d`` is 1 where more than half vote for it. As lambda's term is the same for all items, that is where
    the middle one of ``g theta_d`` is at most ``-lambda F_r (theta_r - theta_d)^2``: it is all that is kept of the
    items, so that lambda can be searched. Of n items the middle one is that of rank ``n // 2`` from 0.

    The paper has weights of 1, lambda 1000, and two models, the first of which reasons; its losses are means over
    tokens, here they are sums, as of ``fisher``. An input of weight 0 is not there: the next is then the first. What no
    item reaches is merged, as are tensors without statistics: nothing speaks against it.
    """
    used = [i for i, w in enumerate(weight) if w]
    if not used:
        return base.clone()
    first, count = used[0], len(inputs)
    result = (inputs[first] - base).mul_(weight[first]).add_(base)
    held = context.statistic(first)
    for i in used[1:]:
        task = (inputs[i] - base).mul_(weight[i])
        said = context.statistic(count + i)
        cost = torch.zeros_like(task, dtype=torch.float64)
        if held is not None:
            cost = (inputs[first].double() - inputs[i].double()).square_()
            cost.mul_(held.values.view(task.shape)).mul_(10.0**log_lambda)
        if said is not None:
            cost.add_(said.values.view(task.shape))
        result += task.mul_(cost <= 0)
    return result
