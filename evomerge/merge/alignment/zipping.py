"""Merging two aligned models in part: hidden units that match are averaged, the others are kept side by side.

ZipIt (Stoica et al. 2024, arXiv 2305.03053) and PLeaS (Nasery et al. 2025, arXiv 2407.02447) merge the best matched
share of a layer's units, so that layers get wider. Here these are the hidden units of feed-forward layers, whose number
a configuration can say; the residual stream and attention heads are merged whole. Kept side by side, all hidden units
give the mean of what the two layers give. Layers may share different ratios of their units; as a configuration has one
number of them, narrower layers are filled up with units that are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.merge.alignment.orders import Indices, Part, Symmetries, Units

KIND = "mlp"
Weights = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Side:
    """An axis of a merged tensor.

    Attributes:
        source: where in both models' axis each of its places comes from, int64 of shape ``(size,)``.
        first, second: how much each place has of the first and of the second model, float64 of that shape.
    """

    source: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    @property
    def matrix(self) -> torch.Tensor:
        """What makes its units of both models' units, one after the other: float64 of shape ``(size, 2 units)``."""
        size, units = len(self.source), int(self.source.max()) + 1 if len(self.source) else 0
        found = torch.zeros((size, 2 * units), dtype=torch.float64)
        rows = torch.arange(size)
        found[rows, self.source] = self.first
        found[rows, units + self.source] = self.second
        return found


@dataclass(frozen=True)
class Zip:
    """Which hidden units two aligned models share.

    Attributes:
        symmetries: of the models.
        shared: by group of hidden units, those that are averaged, ascending.
        reads: of weights of linear layers, the axis of their inputs.
        apart: by group, those that are kept side by side, the most alike first.
        even: whether all groups get the width of the widest.
    """

    symmetries: Symmetries
    shared: Mapping[Part, Indices]
    reads: Mapping[str, int]
    apart: Mapping[Part, Indices]
    even: bool = False

    def width(self, part: Part) -> int:
        """How many hidden units a group has once it is merged, without those that are zero."""
        return len(self.shared[part]) + 2 * len(self.apart[part])

    def zeros(self, part: Part) -> int:
        """How many units that are zero fill a group up."""
        return max(self.width(own) for own in self.shared) - self.width(part) if self.even else 0

    def side(self, name: str, number: int, size: int) -> Side:
        """An axis of a merged tensor: units that are written, or inputs as they are read."""
        axes = self.symmetries.axes.get(name)
        source, first, second = [], [], []
        done = np.zeros(size, dtype=bool)
        stretches = axes[number].stretches if axes is not None else ()
        for part, places in stretches:
            if part.kind == KIND and part in self.shared:
                shared = self.shared[part]
                apart, none = self.apart[part], np.zeros(self.zeros(part))
                source += [places[shared], places[apart], places[apart], np.full(len(none), places[0])]
                first += [np.full(len(shared), 0.5), np.ones(len(apart)), np.zeros(len(apart)), none]
                second += [np.full(len(shared), 0.5), np.zeros(len(apart)), np.ones(len(apart)), none]
                done[places] = True
        if not done.any():
            source, first, second = [np.arange(size)], [np.full(size, 0.5)], [np.full(size, 0.5)]
        elif not done.all():
            raise PoolError(f"an axis of {name!r} has hidden units and others", "one kind on an axis")
        return Side(*(torch.from_numpy(np.concatenate(own)) for own in (source, first, second)))

    def merged(self, name: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """A merged tensor of two aligned models', in float32.

        Of hidden units that are apart the layer that writes them has the rows of both models, the one that reads them
        half of the columns of each: its outputs are means.
        """
        one, other = first.float(), second.float()
        for number in range(one.dim()):
            if not self._widens(name, number):
                continue
            side, shape = self.side(name, number, one.shape[number]), [1] * one.dim()
            shape[number] = -1
            # Where the mean of the models is taken below, what only one of them has must count twice.
            scale = 1.0 if self.reads.get(name) == number else 2.0
            own = [
                torch.where(part == 0.5, 1.0, part * scale).float().view(shape) for part in (side.first, side.second)
            ]
            one = one.index_select(number, side.source) * own[0]
            other = other.index_select(number, side.source) * own[1]
        return (one + other) / 2

    def _widens(self, name: str, number: int) -> bool:
        axes = self.symmetries.axes.get(name, ())
        return number < len(axes) and any(p.kind == KIND and p in self.shared for p, _ in axes[number].stretches)


def zipped(
    symmetries: Symmetries,
    first: Weights,
    second: Weights,
    ratio: float | Sequence[float],
    reads: Mapping[str, int],
    *,
    even: bool = False,
) -> Zip:
    """Choose which hidden units are averaged: those whose weights are most alike, by their cosine.

    Args:
        symmetries: of both models.
        first, second: their tensors, the second aligned to the first.
        ratio: share of the hidden units that is averaged, from 0 to 1; or one for each layer.
        reads, even: as of `Zip`.
    """
    shared: dict[Part, Indices] = {}
    kept: dict[Part, Indices] = {}
    for part, group in symmetries.groups.items():
        if part.kind != KIND or not isinstance(group, Units):
            continue
        products, norms = np.zeros(group.size), np.zeros((2, group.size))
        for name, axes in symmetries.axes.items():
            for number, axis in enumerate(axes):
                for own, places in axis.stretches:
                    if own != part:
                        continue
                    rows = [w(name).double().movedim(number, 0).reshape(axis.size, -1)[places] for w in (first, second)]
                    products += (rows[0] * rows[1]).sum(1).numpy()
                    norms += np.stack([own.square().sum(1).numpy() for own in rows])
        cosines = products / np.sqrt(np.maximum(norms[0] * norms[1], 1e-300))
        own_ratio = ratio if isinstance(ratio, int | float) else ratio[part.layer or 0]
        count, order = round(own_ratio * group.size), np.argsort(-cosines, kind="stable")
        shared[part], kept[part] = np.sort(order[:count]), order[count:]
    return Zip(symmetries, shared, reads, kept, even)


def reading_axes(module: nn.Module) -> dict[str, int]:
    """Of the weights of linear layers, the axis of their inputs, by name."""
    found = {}
    for path, own in module.named_modules():
        name = f"{path}.weight" if path else "weight"
        if isinstance(own, nn.Linear):
            found[name] = 1
        elif type(own).__name__ == "Conv1D":  # of transformers' GPT-2: y = x W
            found[name] = 0
    return found
