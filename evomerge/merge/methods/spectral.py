"""What methods that decompose task vectors share: singular triplets, polar factors, means of what is no matrix.

Decompositions are computed in float64 and on one thread. LAPACK adds up in another order for every number of threads,
and the last bits of singular vectors differ: results would depend on how many a worker has. Processors of another kind
and GPUs still differ by rounding.

Singular values up to `ROUNDING` times the largest are taken for zero. Task vectors are differences of float32 numbers:
directions of such values are rounding, which methods that raise small values would otherwise bring to full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import NamedTuple, TypeVar

import torch

from evomerge.merge.methods.parameters import LAMBDA
from evomerge.merge.methods.registry import BASE, Values
from evomerge.recipes.method_spec import ParameterSpec

T = TypeVar("T", bound=torch.Tensor | tuple[torch.Tensor, ...])

ROUNDING = 1e-6
"""Of the largest singular value: what is no more is zero."""

SCALE = replace(LAMBDA, searched=True)
RANK = ParameterSpec(
    "rank",
    1.0,
    low=0.1,
    high=1.0,
    minimum=0.0,
    maximum=1.0,
    summary="of the rank divided among the models, the share that each keeps; found anew for every value",
)


def scale_of(values: Values) -> tuple[float, ...]:
    """The only factor of a method with one (`Derived.factors`)."""
    return (float(values["lambda_"]),)


def base_alone(values: Values) -> int | None:
    """`Method.unchanged` where nothing is added to the base."""
    return BASE if values["lambda_"] == 0 else None


class Triplets(NamedTuple):
    """Singular triplets, by falling value: ``u @ diag(s) @ vh`` is the matrix, or what is left of it.

    Attributes:
        u: left vectors as columns, of shape ``(m, k)``.
        s: values, of shape ``(k,)``.
        vh: right vectors as rows, of shape ``(k, n)``.
    """

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor


def of_matrices(
    find: Callable[..., T], otherwise: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None
) -> Callable[..., T]:
    """A `Derived.find` that is for matrices, in float64, made one for all tensors.

    Args:
        find: for matrices.
        otherwise: for biases, norms, kernels of convolutions and stacks of matrices; by default their `mean`, as in the
            papers' code.
    """
    other = otherwise or mean

    @wraps(find)
    def found(tasks: Sequence[torch.Tensor], **given: object) -> torch.Tensor | T:
        if tasks[0].dim() != 2 or not tasks[0].numel():
            return other(tasks)
        with on_one_thread():
            return find([task.double() for task in tasks], **given)

    return found  # type: ignore[return-value]


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute on one thread inside, on the CPU: the same bits whatever the number outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kept_rank(task: torch.Tensor, share: float, models: int) -> int:
    """How many triplets each of several models keeps of a matrix: a share of its rank over their number, one at least.

    The authors' code keeps none where a side of the matrix is shorter than the number of models: the base's is left.
    """
    return max(1, int(share * min(task.shape) / models))


def mean(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of tensors, added up in their order, in float64."""
    return total(tasks).div_(len(tasks))


def total(tasks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors, likewise."""
    found = tasks[0].to(torch.float64, copy=True)
    for task in tasks[1:]:
        found += task
    return found


def triplets(matrix: torch.Tensor, most: int | None = None, scale: float | None = None) -> Triplets:
    """The largest singular triplets of a matrix whose values are not zero (see the module).

    Args:
        matrix: float64.
        most: how many at most; all by default.
        scale: what a value is compared with to be zero; the largest by default.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    least = ROUNDING * (float(s[0]) if scale is None else scale)
    count = min(int((s > least).sum()), len(s) if most is None else most)
    if count == len(s):
        return Triplets(u, s, vh)
    return Triplets(u[:, :count].clone(), s[:count], vh[:count].clone())  # the others need not be kept


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix ``U V^T`` of the singular vectors whose values are not zero.

    That is the nearest of matrices with orthonormal columns (rows where these are fewer), in the space that the matrix
    spans: where columns are combinations of others, nothing is made up for them.
    """
    if not matrix.numel():
        return matrix
    u, _, vh = triplets(matrix)
    return u @ vh
