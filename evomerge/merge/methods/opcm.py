"""Models merged one after the other, each projected away from what is there (OPCM, arXiv 2501.09522)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from evomerge.merge.methods.registry import derived_method
from evomerge.merge.methods.spectral import SCALE, base_alone, of_matrices, scale_of, total, triplets
from evomerge.recipes.method_spec import ParameterSpec

ALPHA = ParameterSpec(
    "alpha",
    0.5,
    low=0.0,
    high=1.0,
    minimum=0.0,
    maximum=1.0,
    summary="share of the sum of singular values that later models leave alone; found anew for every value",
)
PLACE = ParameterSpec(
    "place",
    0.0,
    low=0.0,
    high=1.0,
    per_input=True,
    summary="of it in the order: the smaller, the earlier; of equals as the inputs come; found anew for every order",
    tacit=True,
)


def order_of(places: Sequence[float]) -> tuple[int, ...]:
    """The numbers of the inputs by rising place, equals as they come: an order is searched by numbers (random keys)."""
    return tuple(sorted(range(len(places)), key=lambda i: places[i]))


def _of_mean_norm(tasks: Sequence[torch.Tensor], merged: torch.Tensor) -> torch.Tensor:
    """A tensor reduced to the mean norm of task vectors; not enlarged, as it is small where they cancel."""
    norm = float(torch.linalg.vector_norm(merged))
    wanted = sum(float(torch.linalg.vector_norm(task.double())) for task in tasks) / len(tasks)
    return merged * min(1.0, wanted / norm) if norm > 0 else merged


def _summed(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    return _of_mean_norm(tasks, total(tasks))


@derived_method(
    "opcm",
    SCALE,
    ALPHA,
    PLACE,
    summary="task vectors added in order, each without what the sum so far holds (OPCM, arXiv 2501.09522)",
    family="svd",
    factors=scale_of,
    given=lambda values: {"alpha": float(values["alpha"]), "order": order_of(values["place"])},
    whole_alone=True,
    unchanged=base_alone,
)
@partial(of_matrices, otherwise=_summed)
def opcm(tasks: Sequence[torch.Tensor], alpha: float, order: Sequence[int]) -> torch.Tensor:
    """``S_t = S_{t-1} + P(tau_t)``, then ``theta_0 + lambda S_T mean ||tau_i|| / ||S_T||``; the order of models counts.

    Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging. With ``U``
    and ``V`` the singular vectors of ``S_{t-1}``, ``P`` takes the diagonal out of ``U^T tau_t V``, and the corner of
    the first ``r``, whose singular values sum to no more than ``alpha`` of all. For models that come one by one, the
    most important first: the first keeps all of its directions. The norm is that of each tensor (the paper's is that of
    the whole model), and is not enlarged. With ``alpha: 1`` the corner is everything; the authors' code has an empty
    one there. Tensors that are no matrices are summed and reduced to the mean norm.

    The order is that of the inputs, which in a search is the pool's, until a search varies it:
    ``search_space.parameters={place: {low: 0, high: 1}}`` has a number for every model, and their ranks are the order
    (random keys; Bean, 1994), one for each group of layers. There are few to find: 2 of two models, 24 of four.

    Found once per pool for each ``alpha`` and order, kept in four bytes per element; one decomposition for every model
    but the first.
    """
    merged = tasks[order[0]].clone()
    for i in order[1:]:
        merged = merged + _projected(tasks[i], merged, alpha)
    return _of_mean_norm(tasks, merged)


def _projected(task: torch.Tensor, merged: torch.Tensor, alpha: float) -> torch.Tensor:
    """What a task vector adds to a sum."""
    u, s, vh = triplets(merged)
    if not len(s):
        return task
    kept = len(s) if alpha >= 1 else int((s.cumsum(0) / s.sum() <= alpha).sum())
    inside = u.T @ task @ vh.T
    taken = torch.diag(inside.diagonal())
    taken[:kept, :kept] = inside[:kept, :kept]
    return task - u @ taken @ vh
