"""Chromosomes: parts of a model that children inherit with a mix and a split of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import EVERY_COMPONENT, Component, SliceId

Split = Literal["slice", "tensor", "element"]

WHOLE = "model"
REST = "rest"


@dataclass(frozen=True)
class Chromosome:
    """Slices in model order, and where they can be split.

    Attributes:
        name: such as ``attn``, ``norm+embed``, ``rest`` or ``model``.
        slices: its slices, each with the numbers of its pieces: those that a split does not divide, or for splits at
            elements its tensors.
        ends: the number of parameters up to the end of every piece, of shape ``(pieces,)``.
        divides: whether a split may lie within a piece.
    """

    name: str
    slices: tuple[tuple[SliceId, tuple[int, ...]], ...]
    ends: NDArray[np.float64]
    divides: bool

    def cut(self, share: float) -> Mapping[SliceId, tuple[float, ...]]:
        """For every slice, how much of each of its pieces comes before the split; one number where all are equal.

        Args:
            share: of the chromosome's parameters before the split; goes to the nearest place that it may lie at.
        """
        starts = np.concatenate([[0.0], self.ends[:-1]])
        at = share * self.ends[-1]
        if self.divides:
            lengths = np.maximum(self.ends - starts, 1.0)
            before = np.clip((np.rint(at) - starts) / lengths, 0.0, 1.0)
        else:
            places = np.concatenate([[0.0], self.ends])
            before = (self.ends <= places[np.abs(places - at).argmin()]).astype(np.float64)
        found: dict[SliceId, tuple[float, ...]] = {}
        for slice_, pieces in self.slices:
            own = before[list(pieces)].tolist()
            found[slice_] = tuple(own) if len(set(own)) > 1 else (own[0],)
        return found


def tensor_parts(pool: PoolInfo, slice_: SliceId) -> tuple[tuple[str, int], ...]:
    """Names of a slice's tensors, and their numbers of parameters; none where the pool does not know them."""
    return pool.tensors[pool.slices.index(slice_)] if pool.tensors else ()


def chromosomes_of(
    pool: PoolInfo, split: Split, components: Sequence[Sequence[str]], key: str, equal: Collection[SliceId] = ()
) -> list[Chromosome]:
    """The chromosomes of a pool; components that no list names are one more.

    Args:
        pool: what there is. Where it does not know its tensors, all slices count as equally large.
        split: where a split may lie.
        components: lists of components.
        key: the configuration key, for messages.
        equal: slices that are left out; a chromosome of nothing else is none.

    Raises:
        ConfigError: an unknown component or one named twice, an empty list, or splits within slices of a pool whose
            tensors are not known.
    """
    if split != "slice" and not pool.tensors:
        raise ConfigError("the pool does not know its tensors", "splits between slices", "set search_space.split=slice")
    owner: dict[Component, int] = {}
    for number, words in enumerate(components):
        if not words:
            raise ConfigError(f"{key}[{number}] is empty", f"one or more of {', '.join(EVERY_COMPONENT)}", "remove it")
        for word in words:
            if word not in EVERY_COMPONENT:
                raise ConfigError(f"{key}[{number}] names {word!r}", nearest(str(word), EVERY_COMPONENT))
            if word in owner:
                raise ConfigError(
                    f"{key}[{number}] names {word!r} a second time", "every component belongs to one list"
                )
            owner[word] = number
    parts = dict(zip(pool.slices, pool.tensors, strict=True)) if pool.tensors else {}
    found = []
    for number in range(len(components) + 1):
        slices = [s for s in pool.slices if owner.get(s.component, len(components)) == number and s not in equal]
        if not slices:
            continue
        sizes: list[int] = []
        placed = []
        for slice_ in slices:
            own = [size for _, size in parts[slice_]] if slice_ in parts else [1]
            own = own if split != "slice" else [sum(own)]
            placed.append((slice_, tuple(range(len(sizes), len(sizes) + len(own)))))
            sizes += own
        rest = REST if components else WHOLE
        name = "+".join(components[number]) if number < len(components) else rest
        ends = np.cumsum(np.array(sizes, dtype=np.float64))
        found.append(Chromosome(name, tuple(placed), ends, split == "element"))
    return found
