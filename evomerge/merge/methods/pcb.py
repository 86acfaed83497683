"""PCB-Merging: elements weighted by how they compete within and between task vectors (arXiv 2410.02396)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, active, unchanged_task
from evomerge.merge.methods.registry import Values, derived_method
from evomerge.recipes.method_spec import ParameterSpec


def _apart(values: Values) -> bool:
    """Whether the models' parts are to be known one by one."""
    return len({values["weight"][i] for i in active(values["weight"])}) > 1


def _factors(values: Values) -> tuple[float, ...]:
    weights = [float(values["lambda_"] * values["weight"][i]) for i in active(values["weight"])]
    return tuple(weights) if _apart(values) else tuple(weights[:1])


def _given(values: Values) -> Mapping[str, Hashable]:
    return {
        "active": tuple(active(values["weight"])),
        "apart": _apart(values),
        "density": float(values["density"]),
        "clip": float(values["clip"]),
    }


def _unchanged(values: Values) -> int | None:
    """One model alone is merged whole, whatever the density."""
    return unchanged_task({name: values[name] for name in ("weight", "lambda_")})


@derived_method(
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
    factors=_factors,
    given=_given,
    whole_alone=True,
    copies=1,
    changing=True,
    cubic=False,
    unchanged=_unchanged,
)
def pcb(
    tasks: Sequence[torch.Tensor], active: Sequence[int], apart: bool, density: float, clip: float
) -> torch.Tensor | tuple[torch.Tensor, ...]:
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

    ``s_i tau_i / sum_j s_j`` depends on ``density``, ``clip`` and which weights are not zero. It is found once per pool
    for each set of these: candidates that differ in weights and ``lambda`` cost what task arithmetic costs. Kept in
    four bytes per element, times the number of models where their weights differ. A search over ``density`` finds it
    anew for every value.
    """
    chosen = [tasks[i] for i in active]
    if len(chosen) == 1:
        return chosen[0]
    parts = [torch.zeros(tasks[0].shape, device=tasks[0].device) for _ in (chosen if apart else chosen[:1])]
    count = tasks[0].numel()
    if not count or density == 0:
        return tuple(parts)
    competition = _Competition(chosen, clip)
    limits = []
    for i in range(len(chosen)):
        scores = competition.scores(i)
        limits.append(_at_ranks(scores, min(int(count * (1 - density)), count - 1), count - 1))
    for block in blocks(count, tasks[0].device):
        members = competition.tasks(block)
        shares = [_spread(own, *at) for own, at in zip(competition.block_scores(members), limits, strict=True)]
        own = [task.clipped * share for task, share in zip(members, shares, strict=True)]
        divisor = sum(shares)
        divisor = competition.xp.where(divisor > 0, divisor, 1.0)
        for part, total in zip(parts, own if apart else [sum(own)], strict=True):
            part.view(-1)[block] = torch.as_tensor(total / divisor).float()
    return tuple(parts)


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
        tasks: finite, of one shape, float32.
        clip: share of the magnitudes that is clipped at either end.
    """

    def __init__(self, tasks: Sequence[torch.Tensor], clip: float) -> None:
        first = tasks[0]
        self.xp: Any = np if first.device.type == "cpu" else torch
        self._tasks: list[Any] = [x.reshape(-1) if self.xp is torch else x.reshape(-1).numpy() for x in tasks]
        self._blocks = list(blocks(first.numel(), first.device))
        low = int(first.numel() * clip)
        high = max(low, int(first.numel() * (1 - clip) - 1))
        self._bounds = [_at_ranks(self.xp.abs(x), low, high) for x in self._tasks]

    def tasks(self, block: slice) -> list[_Task]:
        """A block of all task vectors."""
        found = []
        for x, bounds in zip(self._tasks, self._bounds, strict=True):
            task = x[block].astype(np.float64) if self.xp is np else x[block].double()
            found.append(_Task(task, bounds, self.xp))
        return found

    def block_scores(self, tasks: Sequence[_Task]) -> list[Any]:
        """The scores of a block of all task vectors, as `scores` has them."""
        return [self._score(i, tasks) for i in range(len(tasks))]

    def scores(self, index: int) -> Any:
        """The scores of a task vector: flat, float32, but for a factor that is the same for all of them."""
        found = self.xp.empty_like(self._tasks[0])
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
