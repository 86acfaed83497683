"""PCB-Merging: elements weighted by how they compete within and between task vectors (arXiv 2410.02396)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.parameters import CHOSEN_WEIGHT, LAMBDA, SCOPE, active, unchanged_task
from evomerge.merge.methods.registry import Values, derived_method
from evomerge.merge.mixes.mix import Scopes
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
        "scope": values["scope"],
    }


class Ends(NamedTuple):
    """What of a layer or a model decides how its elements compete.

    Attributes:
        sizes: of each task vector the magnitudes that it is clipped to.
        scores: of each the scores that are taken to 0 and to 1.
    """

    sizes: Sequence[tuple[float, float]]
    scores: Sequence[tuple[float, float]]


def _beside(values: Values, scopes: Scopes) -> Mapping[str, Any]:
    """The ends of the scope, for `pcb`: of the tensor's own it asks nobody."""
    used, scope, density = active(values["weight"]), values["scope"], float(values["density"])
    if scope == "tensor" or len(used) < 2 or density == 0:
        return {}
    clip = float(values["clip"])
    sizes = _pairs(scopes.values_at(used, scope, "sizes", _sizes, lambda count: _clipped(count, clip)))

    def scores(tasks: Sequence[Any]) -> Sequence[Any]:
        return _block_scores(_tasks(tasks, sizes))

    kept = scopes.values_at(used, scope, ("pcb", clip), scores, lambda count: _kept(count, density))
    return {"ends": Ends(sizes, _pairs(kept))}


def _pairs(found: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
    return [(low, high) for low, high in found]


def _sizes(tasks: Sequence[Any]) -> Sequence[Any]:
    return [abs(task) for task in tasks]


def _clipped(count: int, clip: float) -> tuple[int, int]:
    """The ranks of the magnitudes that so many elements are clipped to."""
    low = int(count * clip)
    return low, max(low, int(count * (1 - clip) - 1))


def _kept(count: int, density: float) -> tuple[int, int]:
    """The ranks of the scores, of so many, that are taken to 0 and to 1."""
    return min(int(count * (1 - density)), count - 1), count - 1


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
    SCOPE,
    summary="averaged by competition within and between task vectors (PCB-Merging, arXiv 2410.02396)",
    family="sparse",
    factors=_factors,
    given=_given,
    whole_alone=True,
    copies=1,
    changing=True,
    cubic=False,
    unchanged=_unchanged,
    beside=_beside,
)
def pcb(
    tasks: Sequence[torch.Tensor],
    active: Sequence[int],
    apart: bool,
    density: float,
    clip: float,
    scope: str = "tensor",
    ends: Ends | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """``theta_0 + lambda sum_i w_i s_i tau_i / sum_i s_i``, with a score ``s_i`` from 0 to 1 for every element.

    ``s_i`` is the product of ``exp(N n(|tau_i|)^2)`` (intra-balancing) and ``sum_j tanh(t_i t_j)`` with
    ``t_i = sign(tau_i) n(|tau_i|)`` (inter-balancing), of which the largest share ``density`` is kept and taken to 0 to
    1 (drop and rescale); ``n`` takes the magnitudes of the scope to 0 to 1. Elements that no task vector keeps are the
    base's. It is meant for task vectors that contradict each other, of which few elements matter: an element counts by
    its size among its own and by how far the others want the same. The weights are the paper's lambda_i, which it
    searches in 0.8 to 1.3.

    As in the authors' code of that search, magnitudes are clipped before all else. The paper's task vectors are those
    of the whole model (``scope: model``): what is clipped, what 0 and 1 stand for and which scores are kept is then
    decided over all tensors, by exact ranks; by default each tensor competes by itself. One model alone competes with
    none: it is merged whole. Where all scores are equal, as in tensors of one element, those above zero are 1.

    ``s_i tau_i / sum_j s_j`` depends on ``density``, ``clip``, ``scope`` and which weights are not zero. It is found
    once per pool for each set of these: candidates that differ in weights and ``lambda`` cost what task arithmetic
    costs. Kept in four bytes per element, times the number of models where their weights differ. A search over
    ``density`` finds it anew for every value; beyond a tensor, magnitudes and scores are counted once for all of them,
    by bins of 1/128, and the bins that a value of it ends in once for each bin.
    """
    chosen = [tasks[i] for i in active]
    if len(chosen) == 1:
        return chosen[0]
    parts = [torch.zeros(tasks[0].shape, device=tasks[0].device) for _ in (chosen if apart else chosen[:1])]
    count = tasks[0].numel()
    if not count or density == 0:
        return tuple(parts)
    competition = _Competition(chosen, clip, ends.sizes if ends is not None else None)
    if ends is not None:
        limits = [competition.numbers(each) for each in ends.scores]
    else:
        limits = [_at_ranks(competition.scores(i), *_kept(count, density)) for i in range(len(chosen))]
    for block in blocks(count, tasks[0].device):
        members = competition.tasks(block)
        shares = [_spread(own, *at) for own, at in zip(_block_scores(members), limits, strict=True)]
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
        xp: numpy or torch.
    """

    def __init__(self, task: Any, bounds: tuple[Any, Any], xp: Any) -> None:
        self.xp = xp
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
        sizes: the magnitudes that each is clipped to; from the tensors' own by `clip` for ``None``.
    """

    def __init__(
        self, tasks: Sequence[torch.Tensor], clip: float, sizes: Sequence[tuple[float, float]] | None = None
    ) -> None:
        first = tasks[0]
        self.xp: Any = np if first.device.type == "cpu" else torch
        self._tasks: list[Any] = [x.reshape(-1) if self.xp is torch else x.reshape(-1).numpy() for x in tasks]
        self._blocks = list(blocks(first.numel(), first.device))
        self._device = first.device
        if sizes is not None:
            self._bounds = [self.numbers(each) for each in sizes]
        else:
            ranks = _clipped(first.numel(), clip)
            self._bounds = [_at_ranks(self.xp.abs(x), *ranks) for x in self._tasks]

    def numbers(self, given: tuple[float, float]) -> tuple[Any, Any]:
        """Two numbers of the host as `_at_ranks` gives them."""
        low, high = (_double(x, self._device if self.xp is torch else None) for x in given)
        return low, high

    def tasks(self, block: slice) -> list[_Task]:
        """A block of all task vectors."""
        return _tasks([x[block] for x in self._tasks], self._bounds)

    def scores(self, index: int) -> Any:
        """The scores of a task vector: flat, float32, but for a factor that is the same for all of them."""
        found = self.xp.empty_like(self._tasks[0])
        for block in self._blocks:
            found[block] = _score(index, self.tasks(block))
        return found


def _tasks(blocks_: Sequence[Any], bounds: Sequence[tuple[Any, Any]]) -> list[_Task]:
    """A block of all task vectors, given as float32, with the magnitudes that they are clipped to."""
    found = []
    for x, ends in zip(blocks_, bounds, strict=True):
        if isinstance(x, np.ndarray):
            found.append(_Task(x.astype(np.float64), (_double(ends[0], None), _double(ends[1], None)), np))
        else:
            found.append(_Task(x.double(), (_double(ends[0], x.device), _double(ends[1], x.device)), torch))
    return found


def _double(value: Any, device: torch.device | None) -> Any:
    """A number as float64 of numpy, or where there is a device as a tensor there."""
    if isinstance(value, torch.Tensor):  # it stays there: nobody waits for it
        return value
    return np.float64(value) if device is None else torch.tensor(value, dtype=torch.float64, device=device)


def _block_scores(tasks: Sequence[_Task]) -> list[Any]:
    """The scores of a block of all task vectors: float32, but for a factor that is the same for all of them."""
    return [_score(i, tasks) for i in range(len(tasks))]


def _score(index: int, tasks: Sequence[_Task]) -> Any:
    own, xp = tasks[index], tasks[0].xp
    between = sum(xp.tanh(own.signed * other.signed) for other in tasks)
    score = xp.exp(len(tasks) * (own.size * own.size - 1)) * between
    return score.astype(np.float32) if xp is np else score.float()


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
