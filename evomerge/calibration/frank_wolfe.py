"""FW-Merging: weights of models by steps towards whichever the gradient at the merge points to (arXiv 2503.12649)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from evomerge.calibration.encoding import Item
from evomerge.calibration.forwards import forward, predicted
from evomerge.errors import PoolError
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.merge.resident.loading import load_on
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

Progress = Callable[[int, int], None]
GRANULARITIES = ("layer", "task")
STARTS = ("average", "base")


@dataclass(frozen=True)
class Steps:
    """What Frank-Wolfe found.

    Attributes:
        weights: by group the weight of each source, in the pool's order; what they lack to 1 is the base's.
        losses: before each step, and at the end: nats.
        gaps: ``<g, theta - s>`` before each step, summed over groups: the most that the loss could fall were it linear.
        chosen: by step and group the index of the source that was stepped towards.
    """

    weights: tuple[tuple[float, ...], ...]
    losses: tuple[float, ...]
    gaps: tuple[float, ...]
    chosen: tuple[tuple[int, ...], ...]


def groups_of(pool: Pool, granularity: str) -> list[list[SliceId]]:
    """Slices that are weighted alike: all of a layer, the embeddings, and what follows; or the whole model."""
    found: dict[Any, list[SliceId]] = {}
    for slice_ in pool.layout.slices:
        key: Any = slice_.layer if slice_.layer is not None else ("embed" if slice_.component == "embed" else "end")
        found.setdefault(None if granularity == "task" else key, []).append(slice_)
    return list(found.values())


def frank_wolfe(
    pool: Pool,
    items: Mapping[str, Sequence[Item]],
    groups: Sequence[Sequence[SliceId]],
    *,
    iterations: int = 10,
    step: float = 0.1,
    start: str = "average",
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Steps:
    """Find weights of the sources, group by group.

    The loss is the mean over sources of the mean over a source's items of minus the mean log-likelihood of what counts
    in an item. Where ``g`` is its gradient at the merge, each group takes a step ``theta += step (theta_k - theta)`` to
    the source ``k`` with the least ``<g, theta_k>``, summed over the group's tensors: the paper's linear minimisation
    oracle over the sources' convex hull. (Its code takes the cosine of each tensor instead, in which small tensors
    count as much as large ones.) Every step reads all items.

    Memory: the model and its gradient in float32; sources stay mapped.

    Args:
        pool: the sources, perhaps with a base, in float32.
        items: of every source.
        groups: slices that are weighted alike, each in one group.
        iterations: how many steps.
        step: their length, from 0 to 1: the paper's gamma.
        start: ``average`` of the sources, or the ``base``.
        device: where the model computes.
        progress: called with forwards done and all of them.

    Raises:
        PoolError: the model cannot be loaded or has no likelihood of the items; a loss is not finite; experts that the
            module holds as one tensor.
    """
    module = load_on(device, pool, None)
    module.config.use_cache = False
    tensors = _tensors(pool, module)
    sources = pool.info.sources
    weights = torch.zeros(len(groups), len(sources), dtype=torch.float64)
    if start == "average":
        weights += 1 / len(sources)
    total, done = (iterations + 1) * sum(len(items[name]) for name in sources), 0
    losses, gaps, chosen = list[float](), list[float](), list[tuple[int, ...]]()
    for number in range(iterations + 1):
        last = number == iterations
        _put(pool, groups, tensors, weights)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for _, parameter in tensors.values():
            parameter.requires_grad_(not last)
        loss = 0.0
        for name in sources:
            for item in items[name]:
                loss += _add_gradient(module, item, 1 / (len(sources) * len(items[name])), backward=not last)
                done += 1
                progress(done, total)
        if not torch.isfinite(torch.tensor(loss)):
            raise PoolError(f"the loss of the merge is {loss}", "a finite number", "set statistics.dtype=float32")
        losses.append(loss)
        if last:
            break
        products, own = _products(pool, groups, tensors, weights)
        best = products.argmin(1)
        gaps.append(float((own - products.gather(1, best[:, None])[:, 0]).sum()))
        chosen.append(tuple(int(k) for k in best))
        weights *= 1 - step
        weights[torch.arange(len(groups)), best] += step
    return Steps(tuple(tuple(row) for row in weights.tolist()), tuple(losses), tuple(gaps), tuple(chosen))


def recipe_of(pool: Pool, groups: Sequence[Sequence[SliceId]], weights: Sequence[Sequence[float]]) -> Recipe:
    """Weights as a recipe: of task vectors where the pool has a base, else of the models."""
    base = Input(pool.info.base) if pool.info.base is not None else None
    method, shared = ("task_arithmetic", ()) if base is not None else ("linear", parameters({"normalize": False}))
    of = {slice_: row for group, row in zip(groups, weights, strict=True) for slice_ in group}

    def entry(slice_: SliceId) -> SliceRecipe:
        pairs = zip(pool.info.sources, of[slice_], strict=True)
        inputs = tuple(Input(name, None, parameters({"weight": float(weight)})) for name, weight in pairs)
        return SliceRecipe(slice_, method, inputs, shared, base)

    return pool.info.recipe(entry(slice_) for slice_ in pool.info.slices)


def _tensors(pool: Pool, module: Any) -> dict[str, tuple[SliceId, Any]]:
    """By the name in the layout, the slice and the parameter of every tensor that is merged; buffers have none."""
    if pool.layout.joins:
        raise PoolError(
            f"{type(module).__name__} holds experts of several tensors as one", "models that keep them apart"
        )
    known = dict(module.named_parameters(remove_duplicate=False))
    return {
        name: (slice_, known[pool.layout.parameters[name]])
        for slice_ in pool.layout.slices
        for name in pool.layout.tensors[slice_]
        if pool.is_merged(name) and pool.layout.parameters[name] in known
    }


def _put(
    pool: Pool, groups: Sequence[Sequence[SliceId]], tensors: Mapping[str, tuple[SliceId, Any]], weights: torch.Tensor
) -> None:
    """Merge the sources into the module."""
    of = {slice_: row for group, row in zip(groups, weights.tolist(), strict=True) for slice_ in group}
    below = pool.info.base or pool.info.sources[0]
    with torch.no_grad():
        for name, (slice_, parameter) in tensors.items():
            base = pool.read(below, name).to(parameter.device).float()
            found = base.clone()
            for source, weight in zip(pool.info.sources, of[slice_], strict=True):
                if source != below and weight:
                    found += (pool.read(source, name).to(parameter.device).float() - base) * weight
            parameter.copy_(found.view(parameter.shape))


def _add_gradient(module: Any, item: Item, share: float, *, backward: bool) -> float:
    """Add the gradient of one item's loss times its share; returns the loss times it."""
    with torch.set_grad_enabled(backward):
        scores, labels = predicted(module, item, forward(module, item))
        if labels is None:
            raise PoolError("a calibration item has no label", "items with right answers")
        loss = functional.cross_entropy(scores, labels) * share
        if backward:
            loss.backward()
    return float(loss.detach())


def _products(
    pool: Pool, groups: Sequence[Sequence[SliceId]], tensors: Mapping[str, tuple[SliceId, Any]], weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``<g, theta_k>`` by group and source, and ``<g, theta>`` by group, less the base's: float64.

    What is left out is the same for all of a group.
    """
    group_of = {slice_: number for number, group in enumerate(groups) for slice_ in group}
    below = pool.info.base or pool.info.sources[0]
    products = torch.zeros(len(groups), len(pool.info.sources), dtype=torch.float64)
    with on_one_thread():
        for name, (slice_, parameter) in tensors.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.reshape(-1).double()
            base = pool.read(below, name).reshape(-1).to(gradient.device).double()
            for k, source in enumerate(pool.info.sources):
                away = pool.read(source, name).reshape(-1).to(gradient.device).double() - base
                products[group_of[slice_], k] += float(gradient @ away)
    return products, (products * weights).sum(1)
