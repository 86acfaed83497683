"""A change of all task vectors that brings their sum nearer to each (DOGE, arXiv 2501.01230)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from evomerge.merge.methods.adam import adam
from evomerge.merge.methods.registry import derived_method
from evomerge.merge.methods.sce import largest, largest_there
from evomerge.merge.methods.spectral import SCALE, base_alone, of_matrices, scale_of, triplets
from evomerge.recipes.method_spec import ParameterSpec

ETA = ParameterSpec(
    "eta",
    0.07,
    low=0.01,
    high=1.0,
    minimum=0.0,
    summary="norm that every task vector is brought to before they are summed; found anew for every value",
)
KEPT = ParameterSpec(
    "density",
    0.3,
    low=0.1,
    high=1.0,
    minimum=0.0,
    maximum=1.0,
    summary="share of a task vector's elements, the largest, that is kept in the end; likewise",
)
STEPS = ParameterSpec(
    "iterations", 400, low=0, high=400, kind="integer", minimum=0, maximum=10_000, summary="steps of Adam; likewise"
)
RATE = ParameterSpec("rate", 1e-4, low=1e-5, high=1e-3, minimum=0.0, maximum=1e-2, summary="size of these; likewise")
SHARED = ParameterSpec(
    "subspace",
    6,
    low=2,
    high=16,
    kind="integer",
    minimum=1,
    summary="the first of so many parts of the directions is shared, and does not change; likewise",
)


def _unmoved(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.zeros_like(tasks[0])


@derived_method(
    "doge",
    SCALE,
    ETA,
    KEPT,
    STEPS,
    RATE,
    SHARED,
    summary="task vectors of equal norm with a learnt common change, trimmed and summed (DOGE, arXiv 2501.01230)",
    family="svd",
    factors=scale_of,
    given=lambda values: {
        "eta": float(values["eta"]),
        "density": float(values["density"]),
        "iterations": int(values["iterations"]),
        "rate": float(values["rate"]),
        "subspace": int(values["subspace"]),
    },
    copies=20,
    unchanged=base_alone,
)
@partial(of_matrices, otherwise=_unmoved)
def doge(
    tasks: Sequence[torch.Tensor], eta: float, density: float, iterations: int, rate: float, subspace: int
) -> torch.Tensor:
    """``theta_0 + lambda sum_i c_i m_i (tau_i + Delta)``, ``c_i = eta / ||tau_i||`` and ``m_i`` the largest elements.

    Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent. ``Delta`` is learnt from zero by Adam on
    ``sum_j sum_r <tau_j, tau_j - sum_i c_i (tau_i + Delta)>_r^2``, of rows ``r``, its gradient without what lies in the
    shared subspace: the first ``int(k / subspace)`` left directions of the first ``int(k / T)`` left vectors of all
    models, with ``k`` the smaller side. A model that is the base does not count, and one alone has no conflicts: no
    change is learnt. The largest elements are those of each tensor, and exactly the share ``density``; the authors trim
    over the whole model and keep one more. As in their code, tensors that are no matrices stay the base's. For tasks
    that conflict; ``eta`` is the authors' for vision models, and small for others: a search scales the sum.

    Found once per pool for each set of the other parameters, kept in four bytes per element. Finding takes about twenty
    copies of a tensor in float64.
    """
    used = [(task, float(torch.linalg.matrix_norm(task))) for task in tasks]
    used = [(task, norm) for task, norm in used if norm > 0]
    result = torch.zeros_like(tasks[0])
    if not used:
        return result
    moving = [task for task, _ in used]
    scales = [eta / norm for _, norm in used]
    learnt = len(moving) > 1 and iterations
    delta = _delta(moving, scales, _shared(moving, subspace), iterations, rate) if learnt else result.clone()
    for task, scale in zip(moving, scales, strict=True):
        magnitudes = task.abs().view(-1)
        count = int(density * len(magnitudes))
        if task.device.type == "cpu":
            mask = largest(magnitudes, count)
        else:
            mask = largest_there(magnitudes, torch.full((), count, device=task.device))
        result += (task + delta) * mask.view(task.shape) * scale
    return result


def _shared(tasks: Sequence[torch.Tensor], subspace: int) -> torch.Tensor:
    """Orthonormal left directions that are shared, as columns."""
    side = min(tasks[0].shape)
    first = torch.cat([triplets(task, int(side / len(tasks))).u for task in tasks], 1)
    return triplets(first, int(side / subspace)).u if first.numel() else first


def _delta(
    tasks: Sequence[torch.Tensor], scales: Sequence[float], shared: torch.Tensor, iterations: int, rate: float
) -> torch.Tensor:
    total = torch.zeros_like(tasks[0])
    for task, scale in zip(tasks, scales, strict=True):
        total += scale * task
    weight = sum(scales)

    def gradient(delta: torch.Tensor) -> torch.Tensor:
        found, merged = torch.zeros_like(delta), total + weight * delta
        for task in tasks:
            lacking = (task * (task - merged)).sum(1, keepdim=True)
            found -= 2 * weight * lacking * task
        return found - shared @ (shared.T @ found)

    return adam(gradient, total.new_zeros(total.shape), iterations, rate)
