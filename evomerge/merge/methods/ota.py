"""OTA merging with FFG: what changed where the loss is steep, weighted by its steepness (arXiv 2509.11167)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.fisher import POSITIVE
from evomerge.merge.methods.parameters import DENSITY, LAMBDA, SCOPE, only_active
from evomerge.merge.methods.registry import BASE, Context, Values, merge_method
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.merge.methods.sphere import check_finite
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import ParameterSpec

POWER = ParameterSpec(
    "power",
    0.5,
    low=0.0,
    high=1.0,
    minimum=0.0,
    maximum=4.0,
    searched=True,
    summary="of the curvature: 0 is the mean of what is kept, large ones choose one model for every element",
)
LOG_FLOOR = ParameterSpec(
    "log_floor",
    -8.0,
    low=-8.0,
    high=1.0,
    minimum=-30.0,
    maximum=30.0,
    summary="logarithm to the base 10 of what is added to it then; the mean curvature is 1",
)


class Curvature:
    """How steep the loss is along each element of a tensor, in units of the model's mean.

    Args:
        known: what data says of the tensor; ``None`` is a curvature of 1 everywhere.
        shape: of the tensor.
        rank_one: whether a matrix is taken for the outer product of its sums over rows and columns, over the total.
    """

    def __init__(self, known: Statistic | None, shape: Sequence[int], rank_one: bool) -> None:
        self._values = known.values if known is not None else None
        self._unit = (known.mean if known is not None else 1.0) or 1.0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None
        if rank_one and self._values is not None and len(shape) > 1 and self._values.numel():
            rows = self._values.view(shape[0], -1)
            with on_one_thread():
                down, across = rows.sum(1, dtype=torch.float64), rows.sum(0, dtype=torch.float64)
                total = across.sum()
            self._sums = down / torch.where(total > 0, total, 1.0), across

    def at(self, part: slice, device: torch.device) -> torch.Tensor:
        """That of some elements, by their indices in the flat tensor: float64."""
        if self._values is None:
            return torch.ones(part.stop - part.start, dtype=torch.float64, device=device)
        if self._sums is None:
            return self._values[part].double().div_(self._unit)
        down, across = self._sums
        index = torch.arange(part.start, part.stop, device=device)
        columns = len(across)
        return down[index // columns].mul_(across[index % columns]).div_(self._unit)

    def scores(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """``v tau^2`` of a flat tensor, which says what leaving a change out costs: float32."""
        found = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
        for part in blocks(x.numel(), x.device):
            task = x[part].double().sub_(base[part].double())
            found[part] = task.square_().mul_(self.at(part, x.device))
        return found


def count_kept(size: int, density: float) -> int:
    """How many of so many elements FFG keeps."""
    return min(size, max(1, int(density * size))) if density > 0 else 0


def _unchanged(values: Values) -> int | None:
    """One model that is kept whole is itself; none is the base."""
    if values["lambda_"] == 0 or not any(values["weight"]):
        return BASE
    index = only_active(values["weight"])
    return index if index is not None and values["lambda_"] == 1 and values["density"][index] >= 1 else None


@merge_method(
    "ota",
    POSITIVE,
    replace(DENSITY, summary="share of its changes that is kept: those of the largest curvature times square"),
    POWER,
    LOG_FLOOR,
    LAMBDA,
    ParameterSpec(
        "rank_one",
        False,
        kind="boolean",
        summary="take the curvature of a matrix for the product of its sums over rows and columns",
    ),
    ParameterSpec(
        "normalize",
        True,
        kind="boolean",
        summary="give the curvature the same mean for every model; false, as published, is for models trained alike",
    ),
    SCOPE,
    summary="changes weighted by curvature, the least important left out (OTA with FFG, arXiv 2509.11167)",
    family="statistics",
    base="required",
    idempotent=True,
    unchanged=_unchanged,
    statistics="curvature",
)
def ota(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    power: float,
    log_floor: float,
    lambda_: float,
    rank_one: bool,
    normalize: bool,
    scope: str,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i m_i P_i tau_i / sum_i w_i m_i P_i`` by element, with ``P_i = v_i^power + floor``.

    Harnessing Optimization Dynamics for Curvature-Informed Model Merging. ``v_i`` are Adam's second moments, of the
    optimizer's state beside model ``i``, or where there is none the squared gradients of calibration items. FFG keeps
    what costs most to leave out: the mask ``m_i`` is 1 where ``v_i tau_i^2`` is at least the score of the last of
    ``int(density * n)`` elements, by falling score and one at least; all of that score are kept. With ``scope: model``,
    which is the paper's, the threshold is one for the model, found in bins of 1/128: what lies in the last bin is kept.
    Where no model keeps an element, it is the base's.

    The paper has ``power`` 0.5, no ``lambda``, equal weights, and does not normalise, as its models were trained alike.
    ``rank_one`` is its form that keeps two vectors for a matrix. Tensors without statistics have a curvature of 1 and
    are trimmed by themselves. One float32 tensor is in memory beside the models; blocks are computed in float64.

    Raises:
        PoolError: values are NaN or infinite.
    """
    flat, origin, shape = [x.reshape(-1) for x in inputs], base.reshape(-1), base.shape
    used = [i for i, w in enumerate(weight) if w]
    if origin.device.type == "cpu":
        check_finite({i: float((flat[i].double() - origin.double()).sum()) for i in used}, len(inputs))
    known = {i: context.statistic(i) for i in used}
    if any(own is None for own in known.values()):
        known = dict.fromkeys(used)
    curvatures = {i: Curvature(own, shape, rank_one) for i, own in known.items()}
    means = [own.mean for own in known.values() if own is not None]
    shared = sum(means) / len(means) if means else 1.0
    least = {}
    for i in used:
        wide = context.scopes if scope != "tensor" and known[i] is not None else None
        if density[i] >= 1:
            least[i] = -math.inf
        elif wide is not None:
            least[i] = wide.least_score(i, density[i], scope, rank_one)
        else:
            least[i] = _least(curvatures[i].scores(flat[i], origin), density[i])
    result = torch.empty_like(origin)
    for part in blocks(origin.numel(), origin.device):
        below = origin[part].double()
        total, moved = torch.zeros_like(below), torch.zeros_like(below)
        for i in used:
            task, curvature = flat[i][part].double() - below, curvatures[i].at(part, origin.device)
            kept = (task.square() * curvature).float() >= least[i]
            own = known[i]
            if not normalize and own is not None and shared:
                curvature *= own.mean / shared
            counts = curvature.pow_(power).add_(10.0**log_floor).mul_(weight[i]).mul_(kept)
            total += counts
            moved += task.mul_(counts)
        result[part] = moved.div_(torch.where(total > 0, total, 1.0)).mul_(lambda_).add_(below)
    return result.view(shape)


def _least(scores: torch.Tensor, density: float) -> float:
    """The score of the last element that is kept."""
    count = count_kept(len(scores), density)
    if not count:
        return math.inf
    at = len(scores) - count
    if scores.device.type == "cpu":
        return float(np.partition(scores.numpy(), at)[at])
    return float(scores.sort().values[at])
