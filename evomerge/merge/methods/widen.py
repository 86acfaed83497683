"""WIDEN: task vectors weighted by how far columns moved, in length and direction (arXiv 2408.03092)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, active, unchanged_task
from evomerge.merge.methods.registry import BASE, Context, Values, merge_method
from evomerge.merge.methods.rows import blocks, inner, row_factors, vectors
from evomerge.merge.methods.sphere import arrays_of, check_finite
from evomerge.recipes.method_spec import ParameterSpec


def _unchanged(values: Values) -> int | None:
    """One input is itself where its important columns count one, as the others do."""
    found = unchanged_task(values)
    return found if found in (None, BASE) or values["calibration"] == 1 else None


@merge_method(
    "widen",
    CHOSEN_WEIGHT,
    ParameterSpec(
        "above_average",
        1.0,
        low=0.0,
        high=2.0,
        minimum=0.0,
        searched=True,
        summary="times the mean rank that a column must exceed to count as important",
    ),
    ParameterSpec(
        "calibration", 1.0, low=0.0, high=2.0, minimum=0.0, searched=True, summary="score of what is important"
    ),
    ParameterSpec(
        "along",
        "columns",
        kind="categorical",
        choices=("columns", "rows"),
        summary="what of a matrix is one vector; the paper has rows for embeddings, columns for all else",
    ),
    LAMBDA,
    summary="task vectors weighted by how far their columns moved, in length and direction (WIDEN, arXiv 2408.03092)",
    family="task_vectors",
    base="required",
    idempotent=True,
    unchanged=_unchanged,
)
def widen(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    above_average: float,
    calibration: float,
    along: str,
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i (m_i + d_i)/2 tau_i`` with scores ``m_i`` and ``d_i`` for every column of a matrix.

    How far the length of a column moved from the base's, and one minus the cosine between the two, are ranked within
    each model (0 to below 1). ``m_i`` and ``d_i`` are the softmax of these ranks over the models; where a rank exceeds
    ``above_average`` times the model's mean rank, the column is important and its score is ``calibration``. Tensors of
    one dimension are scored element by element by the size of their change, without ranks.

    The paper made it for models that moved far, such as continued pre-training, merged with models that were tuned a
    little: ranks make the two comparable, where magnitudes would let the first drown the second. A column of zeros has
    no direction: it is at right angles to any other.

    The authors' code takes cosines in float32, which are all one where models are near the base: ranks are then those
    of rounding. Here they are exact.

    Raises:
        PoolError: values are NaN or infinite.
    """
    used = active(weight)
    if not used or not base.numel():
        return base.clone()
    single = base.dim() < 2  # every element is a vector of its own
    dimension = 0 if along == "columns" else -1
    origin, *rows = (
        x.reshape(-1, 1) if single else vectors(x.contiguous(), dimension) for x in (base, *(inputs[i] for i in used))
    )
    lengths, angles = _moved(rows, origin)
    if isinstance(lengths, np.ndarray):
        check_finite(dict(zip(used, lengths.sum(1), strict=True)), len(inputs))
    if single:
        limits = lengths.sum(1, keepdims=True) / lengths.shape[1] * above_average
        scores = _scores(lengths, lengths > limits, calibration)
    else:
        count = lengths.shape[1]
        ranks = _ranks(lengths), _ranks(angles)
        # Their mean is half of the largest: in whole numbers, so that the middle column is not above it by rounding.
        important = [rank > above_average * (count - 1) / 2 for rank in ranks]
        both = [_scores(rank / count, given, calibration) for rank, given in zip(ranks, important, strict=True)]
        scores = (both[0] + both[1]) / 2
    factors = [row_factors(scores[n] * (weight[i] * lambda_)) for n, i in enumerate(used)]
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    out = result.view(-1, 1) if single else vectors(result, dimension)
    for part in blocks(out):
        total = (rows[0][part] - origin[part]).mul_(factors[0][part])
        for x, own in zip(rows[1:], factors[1:], strict=True):
            total.add_((x[part] - origin[part]).mul_(own[part]))
        out[part] = total.add_(origin[part])
    return result


def _moved(rows: Sequence[torch.Tensor], origin: torch.Tensor) -> tuple[Any, Any]:
    """By how much the length of every vector differs from the base's, and one minus the cosine between the two.

    Args:
        rows: of each model, of shape ``(vectors, elements)``, float32.
        origin: of the base.

    Returns:
        Both of shape ``(models, vectors)``, float64: numpy arrays, or tensors where they are on an accelerator.
    """
    lengths = origin.new_empty((len(rows), len(origin)), dtype=torch.float64)
    angles = torch.empty_like(lengths)
    for part in blocks(origin):
        below = _squares(origin[part])
        for i, x in enumerate(rows):
            own, task = _squares(x[part]), _squares(x[part].double().sub_(origin[part]))
            product, apart = (own * below).sqrt_(), own.sqrt() - below.sqrt()
            lengths[i, part] = apart.abs()
            # |u - v|^2 = (|u| - |v|)^2 + 2 |u| |v| (1 - cos): models are near the base, whose cosines all round to one.
            cosines = (task - apart.square()).clamp_min_(0).div_(torch.where(product > 0, 2 * product, 1.0))
            angles[i, part] = torch.where(product > 0, cosines, (task > 0).double())
    return (lengths.numpy(), angles.numpy()) if lengths.device.type == "cpu" else (lengths, angles)


def _squares(x: torch.Tensor) -> torch.Tensor:
    """Of the lengths of rows."""
    return inner(x, x) if x.shape[1] > 1 else x.double().square().view(-1)


def _ranks(values: Any) -> Any:
    """The rank of every number in its row from 0 on, of equals the earlier first, float64."""
    if isinstance(values, np.ndarray):
        order = np.argsort(values, axis=1, kind="stable")
        ranks = np.empty_like(values)
        np.put_along_axis(ranks, order, np.arange(values.shape[1], dtype=np.float64)[None], axis=1)
        return ranks
    order = values.sort(dim=1, stable=True).indices
    places = torch.arange(values.shape[1], dtype=values.dtype, device=values.device).expand_as(values)
    return torch.empty_like(values).scatter_(1, order, places)


def _scores(values: Any, important: Any, calibration: float) -> Any:
    """The softmax over models, and `calibration` for what is important."""
    xp = arrays_of(values)
    shares = xp.exp(values - xp.amax(values, 0))
    return xp.where(important, calibration, shares / shares.sum(0))
