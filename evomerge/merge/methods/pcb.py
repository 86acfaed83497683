"""PCB-Merging: elements weighted by how they compete within and between task vectors (arXiv 2410.02396)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, active, unchanged_task
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.sphere import check_finite
from evomerge.recipes.method_spec import ParameterSpec


def _unchanged(values: Values) -> int | None:
    """One model alone is merged whole, whatever the density."""
    return unchanged_task({name: values[name] for name in ("weight", "lambda_")})


@merge_method(
    "pcb",
    CHOSEN_WEIGHT,
    ParameterSpec(
        "density",
        0.05,
        low=0.01,
        high=0.5,
        minimum=0.0,
        maximum=1.0,
        searched=True,
        summary="share of each task vector's elements that competes",
    ),
    ParameterSpec(
        "clip",
        0.01,
        low=0.0,
        high=0.05,
        minimum=0.0,
        maximum=0.25,
        summary="share of the smallest and of the largest magnitudes that is clipped",
    ),
    LAMBDA,
    summary="averaged by competition within and between task vectors (PCB-Merging, arXiv 2410.02396)",
    family="sparse",
    base="required",
    idempotent=True,
    unchanged=_unchanged,
)
def pcb(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    density: float,
    clip: float,
    lambda_: float,
    context: Context,
) -> torch.Tensor:
    """``theta_0 + lambda sum_i w_i s_i tau_i / sum_i s_i``, with a score ``s_i`` from 0 to 1 for every element.

    ``s_i`` is the product of ``exp(N n(|tau_i|)^2)`` (intra-balancing) and ``sum_j tanh(t_i t_j)`` with
    ``t_i = sign(tau_i) n(|tau_i|)`` (inter-balancing), of which the largest share ``density`` is kept and taken to 0 to
    1 (drop and rescale); ``n`` takes the values of a tensor to 0 to 1. Elements that no task vector keeps are the
    base's. It is meant for task vectors that contradict each other, of which few elements matter: an element counts by
    its size among its own and by how far the others want the same. The weights are the paper's lambda_i, which it
    searches in 0.8 to 1.3.

    As in the authors' code of that search, magnitudes are clipped before all else; the paper's scores are of the whole
    model, these of each tensor. One model alone competes with none: it is merged whole. Where all scores of a tensor
    are equal, as in tensors of one element, those above zero are 1.

    Two tensors more than the inputs are in memory: the scores of one task vector, and the result.

    Raises:
        PoolError: values are NaN or infinite.
    """
    used = active(weight)
    if not used or not base.numel() or density == 0:
        return base.clone()
    if len(used) == 1:
        return (inputs[used[0]] - base).mul_(weight[used[0]] * lambda_).add_(base)
    competition = _Competition([inputs[i] for i in used], base, clip)
    check_finite(dict(zip(used, competition.sums, strict=False)), len(inputs))
    ranks = base.numel() - 1
    limits = []
    for i in range(len(used)):
        scores = competition.scores(i)
        limits.append(_at_ranks(scores, min(int(base.numel() * (1 - density)), ranks), ranks))
    result = base.new_empty(base.numel())
    for block in blocks(base.numel(), base.device):
        tasks = competition.tasks(block)
        shares = [_spread(own, *at) for own, at in zip(competition.block_scores(tasks), limits, strict=True)]
        total, divisor = 0.0, 0.0
        for i, task, share in zip(used, tasks, shares, strict=True):
            total = total + task.clipped * share * weight[i]
            divisor = divisor + share
        mean = total / competition.xp.where(divisor > 0, divisor, 1.0) * lambda_
        result[block] = torch.as_tensor(mean).float().add_(base.reshape(-1)[block])
    return result.view(base.shape)


class _Task:
    """A block of a task vector.

    Attributes:
        clipped: with its magnitudes clipped, float64.
        size: these as 0 to 1.
        signed: `size` with the sign of `clipped`.
    """

    def __init__(self, task: Any, bounds: tuple[Any, Any], xp: Any) -> None:
        size, sign = xp.abs(task), xp.sign(task)
        self.clipped = sign * xp.clip(size, *bounds)
        self.size = _spread(size, *bounds)
        self.signed = sign * self.size


class _Competition:
    """The scores of the elements of two or more task vectors.

    What is on the CPU is computed by numpy, on one thread: the last bit of an exponential of torch's may depend on
    where its threads divide a tensor.

    Args:
        inputs, base: tensors of one shape, float32.
        clip: share of the magnitudes that is clipped at either end.

    Attributes:
        sums: of the magnitudes of every task vector, as far as the host knows them.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], base: torch.Tensor, clip: float) -> None:
        self.xp: Any = np if base.device.type == "cpu" else torch
        self._inputs, self._base = [self._flat(x) for x in inputs], self._flat(base)
        self._blocks = list(blocks(base.numel(), base.device))
        low = int(base.numel() * clip)
        high = max(low, int(base.numel() * (1 - clip) - 1))
        self.sums: list[float] = []
        self._bounds = [self._bounded(x, low, high) for x in self._inputs]

    def _flat(self, x: torch.Tensor) -> Any:
        return x.reshape(-1) if self.xp is torch else x.reshape(-1).numpy()

    def _bounded(self, x: Any, low: int, high: int) -> tuple[Any, Any]:
        sizes = self.xp.abs(x - self._base)
        if self.xp is np:
            self.sums.append(float(sizes.sum(dtype=np.float64)))
        return _at_ranks(sizes, low, high)

    def tasks(self, block: slice) -> list[_Task]:
        """A block of all task vectors."""
        found = []
        for x, bounds in zip(self._inputs, self._bounds, strict=True):
            task = x[block] - self._base[block]
            found.append(_Task(task.astype(np.float64) if self.xp is np else task.double(), bounds, self.xp))
        return found

    def block_scores(self, tasks: Sequence[_Task]) -> list[Any]:
        """The scores of a block of all task vectors, as `scores` has them."""
        return [self._score(i, tasks) for i in range(len(tasks))]

    def scores(self, index: int) -> Any:
        """The scores of a task vector: flat, float32, but for a factor that is the same for all of them."""
        found = self.xp.empty_like(self._base)
        for block in self._blocks:
            found[block] = self._score(index, self.tasks(block))
        return found

    def _score(self, index: int, tasks: Sequence[_Task]) -> Any:
        own = tasks[index]
        between = sum(self.xp.tanh(own.signed * other.signed) for other in tasks)
        score = self.xp.exp(len(tasks) * (own.size * own.size - 1)) * between
        return score.astype(np.float32) if self.xp is np else score.float()


def _at_ranks(values: Any, low: int, high: int) -> tuple[Any, Any]:
    """The values of two ranks by rising value, float64; reorders a numpy array. Those on an accelerator stay there."""
    if isinstance(values, np.ndarray):
        values.partition((low, high))
        return np.float64(values[low]), np.float64(values[high])
    ordered = values.sort().values
    return ordered[low].double(), ordered[high].double()


def _spread(values: Any, low: Any, high: Any) -> Any:
    """Where values are between two bounds, 0 to 1; of equal bounds 1 for what reaches them and is above zero."""
    xp: Any = np if isinstance(values, np.ndarray) else torch
    inside = (xp.clip(values, low, high) - low) / xp.where(high > low, high - low, 1.0)
    return xp.where(high > low, inside, xp.where((values >= high) & (values > 0), 1.0, 0.0))
