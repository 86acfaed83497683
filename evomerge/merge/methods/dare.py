"""DARE: drop task-vector elements at random and rescale the rest (arXiv 2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.arithmetic import check_normalisable, only_active
from evomerge.merge.methods.linear import LAMBDA, NO_NORMALIZE, WEIGHT, add_tasks, unchanged_task
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.ties import DENSITY, elect
from evomerge.method import ParameterSpec

RESCALE = ParameterSpec("rescale", True, kind="boolean")


def _dropped(
    x: torch.Tensor, base: torch.Tensor, index: int, density: float, rescale: bool, context: Context
) -> torch.Tensor:
    """The task vector with each element kept with probability `density`, divided by it when `rescale` is set."""
    task = x - base
    if density >= 1:
        return task
    context.drop_(index, density, task)
    return task.div_(density) if rescale and density > 0 else task


@merge_method(
    "dare_linear",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    summary="randomly dropped and rescaled task vectors, summed (arXiv 2311.03099)",
    base="required",
    elementwise=True,
    check=check_normalisable,
    unchanged=unchanged_task,
    random=True,
)
def dare_linear(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum w_i m_i tau_i / p_i`` with random masks ``m_i`` of density ``p_i`` (DARE, eq. 3 and 4).

    The survivors are divided by the density, as in the paper; mergekit restores the sum of magnitudes instead.

    Raises:
        InfeasibleError: the weights to normalise sum to zero.
    """
    only = only_active(weight)
    if only is not None and density[only] >= 1 and lambda_ * (1 if normalize else weight[only]) == 1:
        return inputs[only].clone()
    tasks = [
        _dropped(x, base, i, density[i], rescale, context) if weight[i] != 0 else base for i, x in enumerate(inputs)
    ]
    return add_tasks(base, tasks, weight, lambda_, normalize)


@merge_method(
    "dare_ties",
    WEIGHT,
    DENSITY,
    LAMBDA,
    NO_NORMALIZE,
    RESCALE,
    summary="randomly dropped and rescaled task vectors, merged where their signs agree",
    base="required",
    elementwise=True,
    unchanged=unchanged_task,
    random=True,
)
def dare_ties(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    context: Context,
) -> torch.Tensor:
    """DARE in place of the trimming step of TIES."""
    active = [i for i, w in enumerate(weight) if w != 0 and density[i] > 0]
    if not active:
        return base.clone()
    factor = lambda_ * (1 if normalize else weight[active[0]])
    if len(active) == 1 and density[active[0]] >= 1 and factor == 1:
        return inputs[active[0]].clone()
    tasks = [_dropped(inputs[i], base, i, density[i], rescale, context) for i in active]
    return elect(base, tasks, [weight[i] for i in active], normalize, lambda_)
