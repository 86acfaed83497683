"""Switches: one task's model out of a merged model that all tasks share and a small part of the task's own.

EMR-Merging (arXiv 2405.17461), TALL masks (arXiv 2405.07813) and the compressed differences of Twin-Merging (arXiv
2406.15479), static: which task it is, is known before. A slice of such a method has the shared model as its first
input and the tasks' models after it. With one of these it is that task's model; with several no task was chosen, and
it is the shared model (`recipes.switches`). The shared model is an intermediate, made by any methods: it is rounded to
the recipe's dtype before a switch acts on it, so that a folder which holds it once gives the same bits back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from evomerge.merge.methods.blocks import Number, factor, sum_of_magnitudes
from evomerge.merge.methods.low_rank import Bound, Factors, truncated
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.merge.methods.sphere import check_finite
from evomerge.recipes.method_spec import ParameterSpec

_BLOCK = 1 << 22  # elements of a product that is in float64


@dataclass(frozen=True)
class TensorSwitch:
    """What is a task's own of one tensor: a mask and perhaps a factor, thin matrices, or the whole tensor.

    Attributes:
        mask: which elements of the shared model's task vector the task has: bool, of the tensor's shape.
        factor: what the masked task vector is multiplied by; ``None`` for masked elements that are the shared model's.
        low_rank: what is added to the shared model: a matrix as a product.
        whole: the task's own tensor, float32, where nothing smaller is kept.

    With none of them the tensor is the shared model's.
    """

    mask: torch.Tensor | None = None
    factor: Number | None = None
    low_rank: Factors | None = None
    whole: torch.Tensor | None = None

    def on(self, shared: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """The task's tensor, float32, a new one.

        Args:
            shared, base: those of the shared model and, for masks, of the base: float32, of the tensor's shape.
        """
        if self.mask is not None:
            assert base is not None, "a mask is on a task vector"
            if self.factor is None:
                return torch.where(self.mask, shared, base)
            return torch.where(self.mask, (shared - base).mul_(factor(self.factor)).add_(base), base)
        if self.low_rank is not None:
            return _sum(shared, self.low_rank)
        return (shared if self.whole is None else self.whole).clone()


def _sum(shared: torch.Tensor, factors: Factors) -> torch.Tensor:
    """``shared + b a``: the product in float64 and on one thread, for the same bits everywhere, rounded before it is
    added."""
    result, right = shared.clone(), factors.a.double()
    step = max(_BLOCK // max(result.shape[1], 1), 1)
    with on_one_thread():
        for start in range(0, len(result), step):
            at = slice(start, start + step)
            result[at] += (factors.b[at].double() @ right).float()
    return result


def emr_part(shared: torch.Tensor, own: torch.Tensor, base: torch.Tensor | None, *, rescale: bool) -> TensorSwitch:
    """The mask of elements whose sign the shared task vector has, and the factor that restores the sum of magnitudes.

    Args:
        shared, own, base: of the shared model, the task's and the base: float32, of one shape.
        rescale: whether there is a factor.
    """
    assert base is not None
    task, unified = own - base, shared - base
    # By signs: the paper's product of both is zero where it underflows.
    mask = ((task > 0) & (unified > 0)) | ((task < 0) & (unified < 0))
    if not rescale:
        return TensorSwitch(mask)
    kept = sum_of_magnitudes(unified * mask)
    whole = sum_of_magnitudes(task)
    if isinstance(kept, torch.Tensor):
        return TensorSwitch(mask, torch.where(kept > 0, torch.as_tensor(whole) / kept, torch.ones_like(kept)))
    return TensorSwitch(mask, float(whole) / kept if kept > 0 else 1.0)


def tall_part(
    shared: torch.Tensor, own: torch.Tensor, base: torch.Tensor | None, *, selectivity: float
) -> TensorSwitch:
    """The mask of elements where the task vector is not small beside what the others add to it; as for `emr_part`."""
    assert base is not None
    task = own - base
    others = (shared - base).sub_(task).abs_().mul_(selectivity)
    return TensorSwitch(task.abs_() >= others)


def twin_part(shared: torch.Tensor, own: torch.Tensor, base: torch.Tensor | None, *, rank: float) -> TensorSwitch:
    """The first singular triplets of the difference of a matrix; the whole tensor where that takes no more.

    Args:
        shared, own: as for `emr_part`.
        base: not used.
        rank: share of the smaller side of a matrix, one at least; of 0 nothing is left.
    """
    if rank == 0:
        return TensorSwitch()
    keep = twin_rank(tuple(own.shape), rank)
    if keep is None:
        return TensorSwitch(whole=own)
    with on_one_thread():
        return TensorSwitch(low_rank=truncated(own - shared, Bound(keep)))


def twin_rank(shape: tuple[int, ...], rank: float) -> int | None:
    """How many triplets stay of a tensor's difference; ``None`` where the tensor itself does."""
    if len(shape) != 2 or not math.prod(shape):
        return None
    keep = max(1, int(rank * min(shape)))
    return keep if keep * sum(shape) < math.prod(shape) else None


def _all_shared(parameter: str) -> Callable[[Values], int | None]:
    """`Method.unchanged` of switches: the shared model, unless one task is left."""
    return lambda values: None if len(values[parameter]) == 2 else 0


def _check(inputs: Sequence[torch.Tensor]) -> None:
    if inputs[0].device.type == "cpu":
        check_finite({i: float(sum_of_magnitudes(x)) for i, x in enumerate(inputs)}, len(inputs))


def _of_task(
    method: str, inputs: Sequence[torch.Tensor], base: torch.Tensor | None, **values: Sequence[Any]
) -> torch.Tensor:
    """The tensor of the task that is left; the shared model's where several are."""
    if len(inputs) != 2:
        return inputs[0].clone()
    return part_of(method, inputs, base, values).on(inputs[0], base)


@merge_method(
    "emr_switch",
    ParameterSpec(
        "rescale", True, kind="boolean", per_input=True, summary="restore the sum of magnitudes of its task vector"
    ),
    summary="the task's signs of a merged model's task vector, rescaled (EMR-Merging, arXiv 2405.17461)",
    family="switches",
    base="required",
    idempotent=True,
    unchanged=_all_shared("rescale"),
)
def emr_switch(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, rescale: Sequence[bool], context: Context
) -> torch.Tensor:
    """``theta_0 + r_t m_t tau_s`` with ``m_t = [tau_t tau_s > 0]`` and ``r_t = sum |tau_t| / sum |m_t tau_s|``.

    EMR-Merging's steps Mask and Rescale, for tasks that are known when the model is used. Inputs are the shared
    model, whose task vector is tau_s (the paper's is what the method `emr` makes; any other will do), and the
    task's. It keeps a bit for every element and a number for every tensor: the factor is of each tensor here and of
    the whole model in the paper, as slices are merged one by one. Of a tensor that the mask leaves nothing of, and
    without ``rescale``, the factor is 1. With several tasks it is the shared model. Three tensors in float32 are in
    memory beside the models'.

    Raises:
        PoolError: values are NaN or infinite.
    """
    return _of_task("emr_switch", inputs, base, rescale=rescale)


@merge_method(
    "tall_switch",
    ParameterSpec(
        "selectivity",
        0.4,
        low=0.2,
        high=0.6,
        per_input=True,
        minimum=0.0,
        searched=True,
        summary="lambda_t of its mask: the larger, the fewer elements count as its own",
    ),
    summary="a merged model where the task needs it, the base elsewhere (TALL masks, arXiv 2405.07813)",
    family="switches",
    base="required",
    idempotent=True,
    elementwise=True,
    unchanged=_all_shared("selectivity"),
)
def tall_switch(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, *, selectivity: Sequence[float], context: Context
) -> torch.Tensor:
    """``theta_0 + m_t tau_s`` with ``m_t = [|tau_t| >= lambda_t |tau_s - tau_t|]``.

    TALL masks, for tasks that are known when the model is used. Inputs are the shared model, whose task vector is
    tau_s (the paper's is what `task_arithmetic` makes; any other will do), and the task's. It keeps a bit for every
    element. The paper's lambda_t, called selectivity here, are 0.2 to 0.6, chosen by validation; here they are
    genes. With 0 every element is the shared model's. These are not the masks of fusion_bench, which compares with
    ``theta_0`` itself; the authors' code has ``>``, which differs only where both sides are equal. With several
    tasks it is the shared model.

    Raises:
        PoolError: values are NaN or infinite.
    """
    return _of_task("tall_switch", inputs, base, selectivity=selectivity)


@merge_method(
    "twin_switch",
    ParameterSpec(
        "rank",
        0.1,
        low=0.01,
        high=0.5,
        per_input=True,
        minimum=0.0,
        maximum=1.0,
        summary="share of the rank of its differences that is kept, one at least; 0 keeps nothing",
    ),
    summary="a merged model and the task's difference from it, of low rank (Twin-Merging, arXiv 2406.15479)",
    family="switches",
    idempotent=True,
    unchanged=_all_shared("rank"),
)
def twin_switch(
    inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, rank: Sequence[float], context: Context
) -> torch.Tensor:
    """``theta_s + SVD_r(theta_t - theta_s)``: the shared model and the nearest matrix of rank r to what it lacks.

    Twin-Merging's shared and exclusive knowledge, without its router: for tasks that are known when the model is
    used, and lack more than a mask can give. Inputs are the shared model, of any method, and the task's; r is
    ``int(rank * n)`` for matrices whose smaller side is n, embeddings and heads among them. Tensors that are no
    matrices, and matrices whose factors would take more than they themselves, are the task's own. With several
    tasks it is the shared model. A difference is decomposed for every candidate, in float64 and on one thread: that
    takes about three copies of a tensor in float64, and time that grows with the square of its smaller side.

    Raises:
        PoolError: values are NaN or infinite.
    """
    return _of_task("twin_switch", inputs, base, rank=rank)


Find = Callable[..., TensorSwitch]
PARTS: Mapping[str, Find] = MappingProxyType(
    {"emr_switch": emr_part, "tall_switch": tall_part, "twin_switch": twin_part}
)
"""By method what finds a task's own part of a tensor: ``find(shared, own, base, **values)``, with the task's values."""


def part_of(
    method: str, inputs: Sequence[torch.Tensor], base: torch.Tensor | None, values: Mapping[str, Any]
) -> TensorSwitch:
    """A task's own part of a tensor, as the method itself has it.

    Args:
        method: its name.
        inputs: of the shared model and of the task's: float32, of the tensor's shape.
        base: likewise, where the method has one.
        values: the method's arguments (`registry.call_values`).

    Raises:
        PoolError: values are NaN or infinite.
    """
    _check(inputs if base is None else (*inputs, base))
    return PARTS[method](*inputs, base, **{name: each[1] for name, each in values.items()})
