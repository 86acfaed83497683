"""Task vectors that interfere least with each other's inputs (WUDI-Merging, arXiv 2503.08099; OptMerge, 2505.19892)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from evomerge.merge.methods.adam import adam
from evomerge.merge.methods.registry import Values, derived_method
from evomerge.merge.methods.spectral import (
    RANK,
    ROUNDING,
    SCALE,
    base_alone,
    kept_rank,
    of_matrices,
    scale_of,
    total,
    triplets,
)
from evomerge.recipes.method_spec import ParameterSpec

ITERATIONS = ParameterSpec(
    "iterations",
    0,
    low=0,
    high=400,
    kind="integer",
    minimum=0,
    maximum=10_000,
    summary="steps of gradient descent, stopped early; 0 for where they lead in the end; found anew for every value",
)
RATE = ParameterSpec(
    "rate", 1e-5, low=1e-6, high=1e-4, minimum=0.0, maximum=1e-2, summary="size of these steps, likewise"
)
TUNING = ParameterSpec(
    "tuning",
    "full",
    kind="categorical",
    choices=("full", "lora"),
    summary="what the authors do for models that were fine-tuned as a whole, or by adapters of low rank",
)


class _Interference:
    """The loss ``sum_i ||(X - T_i) L_i^T||^2 / ||tau_i||^2``, which is ``||X A - B||^2``.

    Args:
        targets: the ``T_i``, float64 of shape ``(m, n)``.
        directions: the ``L_i``, of shape ``(k_i, n)``.
        norms: squared norms of the ``tau_i``; a model that is the base has none and does not count.
    """

    def __init__(
        self, targets: Sequence[torch.Tensor], directions: Sequence[torch.Tensor], norms: Sequence[float]
    ) -> None:
        every = [each for each in zip(targets, directions, norms, strict=True) if each[2] > 0]
        columns = every[0][1].shape[1]
        self._is_wide = sum(direction.shape[0] for _, direction, _ in every) > columns
        if self._is_wide:  # A A^T and B A^T are smaller, of shapes (n, n) and (m, n), and A and B are never there
            self._a = every[0][1].new_zeros(columns, columns)
            self._b = torch.zeros_like(every[0][0])
            for target, direction, norm in every:
                square = direction.T @ direction / norm
                self._a += square
                self._b += target @ square
        else:
            self._a = torch.cat([direction.T / norm**0.5 for _, direction, norm in every], 1)  # (n, K)
            self._b = torch.cat([target @ (direction.T / norm**0.5) for target, direction, norm in every], 1)  # (m, K)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Of the loss at a matrix of shape ``(m, n)``."""
        rest = x @ self._a - self._b
        return torch.mul(rest if self._is_wide else rest @ self._a.T, 2)

    def nearest_minimum(self, x: torch.Tensor) -> torch.Tensor:
        """The minimum that is nearest to a matrix: where gradient descent from there leads."""
        rest = self._b - x @ self._a
        if self._is_wide:
            return x + rest @ _inverse(self._a)
        return x + rest @ _inverse(self._a.T @ self._a) @ self._a.T


def _inverse(square: torch.Tensor) -> torch.Tensor:
    """The pseudoinverse of inner products, those of directions that are rounding left out."""
    values, vectors = torch.linalg.eigh(square)
    kept = values > ROUNDING**2 * values[-1]
    vectors = vectors[:, kept]
    found: torch.Tensor = vectors / values[kept] @ vectors.T
    return found


def _by_momentum(loss: _Interference, start: torch.Tensor, iterations: int, rate: float) -> torch.Tensor:
    """Steps of gradient descent with a momentum of 0.9."""
    x, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(iterations):
        velocity.mul_(0.9).add_(loss.gradient(x))
        x.sub_(velocity, alpha=rate)
    return x


def _squares(tasks: Sequence[torch.Tensor]) -> list[float]:
    return [float((task * task).sum()) for task in tasks]


def _steps(values: Values) -> Mapping[str, Hashable]:
    iterations = int(values["iterations"])
    return {"iterations": iterations, "rate": float(values["rate"]) if iterations else 0.0}


@derived_method(
    "wudi",
    SCALE,
    ITERATIONS,
    RATE,
    summary="the task vector that interferes least with those of the models (WUDI-Merging, arXiv 2503.08099)",
    family="svd",
    factors=scale_of,
    given=_steps,
    whole_alone=True,
    unchanged=base_alone,
)
@of_matrices
def wudi(tasks: Sequence[torch.Tensor], iterations: int, rate: float) -> torch.Tensor:
    """``theta_0 + lambda argmin_X sum_i ||(X - tau_i) tau_i^T||^2 / ||tau_i||^2``.

    Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors, WUDI-Merging. The
    rows of ``tau_i`` span what inputs of task ``i`` look like, so that ``X`` treats these as ``tau_i`` does: for
    tasks that interfere, without data. With
    ``c_i = 1 / ||tau_i||^2`` and ``G_i = tau_i^T tau_i`` the minimum is ``(sum c_i tau_i G_i) (sum c_i G_i)^+``. The
    authors take 300 steps of Adam on the way there, from the sum of task vectors: ``iterations: 300``. A model that is
    the base in a tensor does not count there; public code divides by its norm, and has no numbers then. Tensors that
    are no matrices are averaged; embeddings and heads are matrices.

    Found once per pool, kept in four bytes per element: candidates that differ in ``lambda`` cost what task arithmetic
    costs. Finding takes one copy in float64 for every model and four more, beside three squares of the smaller of the
    number of columns and that of the rows of all models.
    """
    start, norms = total(tasks), _squares(tasks)
    if not any(norms):
        return start
    loss = _Interference(tasks, tasks, norms)
    return adam(loss.gradient, start, iterations, rate) if iterations else loss.nearest_minimum(start)


@derived_method(
    "optmerge",
    SCALE,
    RANK,
    ITERATIONS,
    RATE,
    TUNING,
    summary="least interference, as wudi, of task vectors of low rank (OptMerge, arXiv 2505.19892)",
    family="svd",
    factors=scale_of,
    given=lambda values: {**_steps(values), "rank": float(values["rank"]), "tuning": str(values["tuning"])},
    whole_alone=True,
    copies=18,
    unchanged=base_alone,
)
@of_matrices
def optmerge(tasks: Sequence[torch.Tensor], iterations: int, rate: float, rank: float, tuning: str) -> torch.Tensor:
    """``theta_0 + lambda argmin_X sum_i ||(X - T_i) (S_i V_i^T)^T||^2 / ||tau_i||^2`` of low rank.

    OptMerge: Unifying Multimodal LLM Capabilities and Modalities via Model Merging. ``S_i V_i^T`` are the first
    ``k = int(rank r / T)`` singular values and right vectors of ``tau_i``, of ``T`` models with smaller side ``r``.
    After full fine-tuning ``T_i = mean + SVD_k(tau_i - mean)``, and steps of Adam begin at the sum of task vectors.
    After adapters (``tuning: lora``) ``T_i = SVD_k(tau_i)``, and steps with momentum begin at their mean; the authors'
    rate is 1e-4 there. They stop after 300. ``iterations: 0`` is the minimum nearest to the start: what no direction
    touches stays as it is there. For task vectors with noise in their small directions.

    Found once per pool for each ``rank``, as `wudi` is; two decompositions more for every model, and
    about eighteen copies of a tensor in float64.
    """
    most, average = kept_rank(tasks[0], rank, len(tasks)), total(tasks) / len(tasks)
    norms = _squares(tasks)
    if not any(norms):
        return average
    first = [triplets(task, most) for task in tasks]
    directions = [each.s[:, None] * each.vh for each in first]
    if tuning == "full":
        targets = []
        for task, norm in zip(tasks, norms, strict=True):
            rest = triplets(task - average, most, norm**0.5)
            targets.append(average + rest.u * rest.s @ rest.vh)
    else:
        targets = [each.u @ rows for each, rows in zip(first, directions, strict=True)]
    loss = _Interference(targets, directions, norms)
    start = total(tasks) if tuning == "full" else average
    if not iterations:
        return loss.nearest_minimum(start)
    if tuning == "full":
        return adam(loss.gradient, start, iterations, rate)
    return _by_momentum(loss, start, iterations, rate)
