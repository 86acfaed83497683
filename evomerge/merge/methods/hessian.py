"""A mean weighted by an estimate of the Hessian's diagonal: every weight counts by how curved the model's loss is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from evomerge.merge.methods.fisher import (
    LOG_FLOOR,
    NORMALIZE,
    POSITIVE,
    POWER,
    alone,
    check_weights,
    weighted_mean,
)
from evomerge.merge.methods.registry import Context, merge_method


@merge_method(
    "hessian",
    POSITIVE,
    replace(POWER, summary="of the second derivatives: 0 is the mean of the models, large ones choose one model"),
    LOG_FLOOR,
    replace(NORMALIZE, summary="give second derivatives the same mean for every model"),
    summary="mean weighted by the diagonal of the Hessian (the Laplace approximation behind arXiv 2111.09832)",
    family="statistics",
    idempotent=True,
    elementwise=True,
    check=check_weights,
    unchanged=alone,
    statistics="hessian",
)
def hessian(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    normalize: bool,
    context: Context,
) -> torch.Tensor:
    """``sum w_i c_i theta_i / sum w_i c_i``, for each element with ``c_i = (max(h_i, 0) / m_i)^power + 10^log_floor``.

    As `fisher`, with the diagonal ``h_i`` of the Hessian of the model's loss in place of the Fisher information's:
    Merging Models with Fisher-Weighted Averaging takes the second for the first in the Laplace approximation of each
    model's posterior (section 3), which is exact where the model has learnt the items' labels. Here it is the Hessian
    itself, estimated with random signs (Hutchinson; AdaHessian, arXiv 2006.00719). Where the loss is curved downwards,
    nothing speaks for a model's value: only the floor is left. ``m_i`` is the mean of ``max(h_i, 0)`` over the model.
    For models that were not trained to the end on the calibration items, where squares of gradients say how far from
    its best a weight is rather than how sure of it the model is.
    """
    return weighted_mean(inputs, weight, power, log_floor, normalize, context)
