"""Isotropic merging: all directions of the merged task vector get one weight (Iso-C and Iso-CTS, arXiv 2502.04959)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from evomerge.merge.methods.registry import derived_method
from evomerge.merge.methods.spectral import SCALE, base_alone, of_matrices, polar, scale_of, total, triplets
from evomerge.recipes.method_spec import ParameterSpec

ISO_SCALE = replace(SCALE, high=3.0)  # of singular values that are equal, the largest is smaller than it was
COMMON = ParameterSpec(
    "common",
    0.8,
    low=0.0,
    high=1.0,
    minimum=0.0,
    maximum=1.0,
    summary="share of the directions that are those of the sum of task vectors; found anew for every value",
)


@derived_method(
    "iso_c",
    ISO_SCALE,
    summary="the sum of task vectors with all singular values made equal (Iso-C, arXiv 2502.04959)",
    family="svd",
    factors=scale_of,
    unchanged=base_alone,
)
@of_matrices
def iso_c(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    """``theta_0 + lambda sbar U V^T``, with ``U diag(s) V^T`` the sum of task vectors and ``sbar`` the mean of ``s``.

    No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, Iso-C. For models whose tasks
    share much, where a few large directions drown the others. The mean is over the singular values that are not
    rounding (above 1e-6 of the largest): the authors' code brings directions that LAPACK makes up for a sum of low rank
    to full size. Tensors that are no matrices are averaged; embeddings and heads are matrices.

    Found once per pool, kept in four bytes per element: candidates that differ in ``lambda`` cost what task arithmetic
    costs. Finding takes about eight copies of a tensor in float64.
    """
    u, s, vh = triplets(total(tasks))
    return (u @ vh).mul_(s.mean() if len(s) else 0.0)


def spaces(shape: Sequence[int], models: int, share: float) -> tuple[int, int]:
    """How many directions are common, and how many each model has of its own; together all of the smaller side.

    The authors round a model's own to the nearest whole number; where that is more than there are for all, it is less.
    """
    whole = min(shape)
    own = min(round((whole - int(whole * share)) / models), whole // models)
    return whole - own * models, own


@derived_method(
    "iso_cts",
    ISO_SCALE,
    COMMON,
    summary="common directions, and some of each task's own, with equal singular values (Iso-CTS, arXiv 2502.04959)",
    family="svd",
    factors=scale_of,
    given=lambda values: {"common": float(values["common"])},
    unchanged=base_alone,
)
@of_matrices
def iso_cts(tasks: Sequence[torch.Tensor], common: float) -> torch.Tensor:
    """``theta_0 + lambda sbar U' V'^T`` of common and task-specific directions.

    No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, Iso-CTS. The first triplets of
    the sum of task vectors are common, a share ``common`` of all that a matrix can have; the others are divided equally
    among the models, and are the first of ``tau_i - U_c U_c^T tau_i``, what the common left directions leave of model
    ``i``. ``U'`` and ``V'`` are the polar factors of all of them, and ``sbar`` the mean of their singular values. For
    many models that share less than `iso_c` keeps. Triplets that are rounding are left out, as there.

    Found once per pool for each value of ``common``, as `iso_c` is; one decomposition more for every model.
    """
    shared, own = spaces(tasks[0].shape, len(tasks), common)
    first = triplets(total(tasks), shared)
    every = []
    for task in tasks:
        if own:
            rest = task - first.u @ (first.u.T @ task)
            every.append(triplets(rest, own, float(torch.linalg.matrix_norm(task))))
    every.append(first)
    values = torch.cat([found.s for found in every])
    if not len(values):
        return torch.zeros_like(tasks[0])
    return polar(torch.cat([t.u for t in every], 1)) @ polar(torch.cat([t.vh for t in every])) * values.mean()
