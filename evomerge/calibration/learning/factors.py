"""How merged tensors depend on what is learnt: ``theta_0 + sum_i f_i tau_i``, with factors ``f_i`` of one kind.

The loss is differentiated with respect to the merged tensors alone; as each gradient arrives, it is turned into that
of what is learnt and let go of, so that no graph through the sources is kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import torch
from torch.nn import functional

from evomerge.calibration.learning.tensors import Target, Tensors
from evomerge.calibration.places import linear_layers
from evomerge.merge.methods.learned import spread
from evomerge.recipes.slices import SliceId


class Factors(Protocol):
    """What is learnt.

    Attributes:
        values: tensors by name; their gradients are in ``grad``.
    """

    values: dict[str, torch.Tensor]

    def begin(self, step: int) -> None:
        """Begin a step: no gradients, the random numbers of this step."""

    def merged(self, target: Target) -> torch.Tensor:
        """The merged tensor."""

    def pull(self, target: Target, gradient: torch.Tensor) -> None:
        """Add what the gradient of the loss by a merged tensor says of what is learnt."""

    def penalty(self) -> torch.Tensor:
        """What is added to the loss, of what is learnt alone; called once all gradients have been pulled."""

    def settle(self) -> None:
        """Bring what is learnt back to where it may be, after a step."""


@dataclass(frozen=True)
class WeightMap:
    """Weights of task vectors that depend on genes: ``w = offset + slopes @ genes``.

    Attributes:
        slices: in order.
        offset: float64 of shape ``(slices, models)``.
        slopes: float64 of shape ``(slices, models, genes)``.
        low, high: bounds of the genes, float64 of shape ``(genes,)``.
        start: where they begin.
    """

    slices: tuple[SliceId, ...]
    offset: torch.Tensor
    slopes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    start: torch.Tensor


class WeightFactors:
    """One factor for each model and slice, by genes that several slices may share.

    Args:
        tensors: the sources.
        map_: how the weights depend on the genes.
        pull: of the genes to their start: ``pull * models * mean |x - x_0|`` (Expert Merging's L1 term).
    """

    def __init__(self, tensors: Tensors, map_: WeightMap, pull: float) -> None:
        self._tensors, self._map, self._pull = tensors, map_, pull
        self.values = {"genes": map_.start.clone().requires_grad_(True)}
        self._number = {slice_: number for number, slice_ in enumerate(map_.slices)}
        self._weights = self._dots = torch.zeros(0)

    def begin(self, step: int) -> None:
        """As of `Factors`."""
        genes = self.values["genes"]
        genes.grad = None
        device = self._tensors.targets[0].parameter.device
        self._weights = self._map.offset + self._map.slopes @ genes.detach()
        self._dots = torch.zeros(self._weights.shape, dtype=torch.float64, device=device)

    def merged(self, target: Target) -> torch.Tensor:
        """As of `Factors`."""
        base = self._tensors.base(target)
        found = base.clone()
        for model, weight in zip(
            self._tensors.sources, self._weights[self._number[target.slice]].tolist(), strict=True
        ):
            if weight:
                found += (self._tensors.of(model, target) - base) * weight
        return found

    def pull(self, target: Target, gradient: torch.Tensor) -> None:
        """As of `Factors`."""
        base, number = self._tensors.base(target), self._number[target.slice]
        wide = gradient.to(base.dtype)
        for at, model in enumerate(self._tensors.sources):
            self._dots[number, at] += (wide * (self._tensors.of(model, target) - base)).sum(dtype=torch.float64)

    def penalty(self) -> torch.Tensor:
        """As of `Factors`."""
        genes = self.values["genes"]
        genes.grad = torch.einsum("sm,smg->g", self._dots.cpu(), self._map.slopes)
        return self._pull * len(self._tensors.sources) * (genes - self._map.start).abs().mean()

    def settle(self) -> None:
        """As of `Factors`."""
        with torch.no_grad():
            self.values["genes"].clamp_(self._map.low, self._map.high)


class MaskFactors:
    """One factor for each element, the same for all task vectors: a relaxed mask over its mean (concrete subspaces).

    ``m = sigmoid((log u - log(1 - u) + x) / T)`` with uniform ``u`` of each step, and logits ``x`` that are learnt and
    begin at 0 (arXiv 2312.06173, section 4.1); ``theta = theta_0 + w sum_i m / mean(m) tau_i``.

    Args:
        tensors: the sources.
        weight: ``w``.
        temperature: ``T``.
        seed: of the masks.
    """

    def __init__(self, tensors: Tensors, weight: float, temperature: float, seed: int) -> None:
        self._tensors, self._weight, self._temperature, self._seed = tensors, weight, temperature, seed
        self._step = 0
        self.values = {
            target.name: torch.zeros(target.parameter.shape, device=target.parameter.device, requires_grad=True)
            for target in tensors.targets
            if target.learnt
        }

    def begin(self, step: int) -> None:
        """As of `Factors`."""
        self._step = step
        for value in self.values.values():
            value.grad = None

    def _drawn(self, target: Target) -> torch.Tensor:
        """The relaxed mask of this step; the same each time it is asked for."""
        digest = hashlib.sha256(f"{self._seed} {self._step} {target.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        chance = torch.rand(target.parameter.shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
        noise = torch.logit(chance).to(target.parameter.device)
        return torch.sigmoid((noise + self.values[target.name].detach()) / self._temperature)

    def _summed(self, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
        """The base, and the sum of task vectors times the weight."""
        base = self._tensors.base(target)
        total = torch.zeros_like(base)
        for model in self._tensors.sources:
            total += self._tensors.of(model, target) - base
        return base, total.mul_(self._weight)

    def merged(self, target: Target) -> torch.Tensor:
        """As of `Factors`."""
        base, total = self._summed(target)
        if not target.learnt:
            return base + total
        mask = self._drawn(target)
        return base + total * (mask / mask.mean())

    def pull(self, target: Target, gradient: torch.Tensor) -> None:
        """As of `Factors`."""
        mask, own = self._drawn(target), self.values[target.name]
        by_ratio = self._summed(target)[1] * gradient  # of the loss by m / mean(m)
        mean = mask.mean()
        by_mask = by_ratio / mean - (by_ratio * mask).mean() / mean**2
        found = (by_mask * mask * (1 - mask) / self._temperature).to(own.dtype)
        own.grad = found if own.grad is None else own.grad + found

    def penalty(self) -> torch.Tensor:
        """As of `Factors`."""
        return torch.zeros(())

    def settle(self) -> None:
        """As of `Factors`."""

    def mask(self, name: str) -> torch.Tensor:
        """What is merged with in the end: the median mask ``sigmoid(x / T)`` over its mean, float32."""
        found = torch.sigmoid(self.values[name].detach() / self._temperature)
        return (found / found.mean()).float()


class ColumnFactors:
    """One factor for every input of a layer, of each model (DAM, arXiv 2410.08371, section 3).

    See `evomerge.merge.methods.learned.columns` for what has how many.

    Args:
        tensors: the sources.
        module: that they are merged in: its linear layers say along which axis their inputs lie.
        start: of all factors.
        similarity: of the mean cosine of two models' factors, summed over tensors.
    """

    def __init__(self, tensors: Tensors, module: Any, start: float, similarity: float) -> None:
        self._tensors, self._similarity = tensors, similarity
        layers = linear_layers(module)
        self.axis: dict[str, int] = {}
        self.values = {}
        for target in tensors.targets:
            shape, axis = target.parameter.shape, 0
            if len(shape) == 2:
                axis = layers[target.place][1] if target.place in layers else 1
                count = shape[axis]
            else:
                count = shape[0] if len(shape) == 1 and not target.place.endswith("bias") else 1
            self.axis[target.name] = axis
            if target.learnt:
                whole = torch.full((len(tensors.sources), count), start, device=target.parameter.device)
                self.values[target.name] = whole.requires_grad_(True)
        self._start = start

    def begin(self, step: int) -> None:
        """As of `Factors`."""
        for value in self.values.values():
            value.grad = torch.zeros_like(value)

    def merged(self, target: Target) -> torch.Tensor:
        """As of `Factors`."""
        base = self._tensors.base(target)
        found = base.clone()
        for at, model in enumerate(self._tensors.sources):
            task = self._tensors.of(model, target) - base
            if target.learnt:
                own = self.values[target.name].detach()[at]
                found += task * spread(own, self.axis[target.name], task.dim())
            else:
                found += task * self._start
        return found

    def pull(self, target: Target, gradient: torch.Tensor) -> None:
        """As of `Factors`."""
        base, into = self._tensors.base(target), self.values[target.name].grad
        assert into is not None, "a step has begun"
        for at, model in enumerate(self._tensors.sources):
            each = gradient.to(base.dtype) * (self._tensors.of(model, target) - base)
            axis = self.axis[target.name]
            into[at] += each.sum() if into.shape[1] == 1 else each.movedim(axis, 0).reshape(into.shape[1], -1).sum(1)

    def penalty(self) -> torch.Tensor:
        """As of `Factors`."""
        found = torch.zeros(())
        pairs = list(combinations(range(len(self._tensors.sources)), 2))
        for value in self.values.values():
            if self._similarity and pairs and value.shape[1] > 1:
                each = [functional.cosine_similarity(value[a], value[b], dim=0) for a, b in pairs]
                found = found + torch.stack(each).mean().cpu() * self._similarity
        return found

    def settle(self) -> None:
        """As of `Factors`."""
