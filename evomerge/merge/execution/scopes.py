"""Ranks of magnitudes over many tensors: of a layer, or of the whole model.

A task vector is ranked as one flat vector, of the slices of a model in their order and of their tensors in theirs: of
equal magnitudes the first there comes first. What is found depends on a model, its base and the rank alone, and is
noted once per pool; no more than one bin of one tensor's histogram need be in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.merge.execution.notes import Notes
from evomerge.merge.kernels.selection import BINS, SHIFT
from evomerge.merge.mixes.cpu_statistics import LARGEST_BITS, Ranks
from evomerge.merge.mixes.magnitude_order import WORD
from evomerge.merge.mixes.mix import Cut, cut_between
from evomerge.models.pool import Pool
from evomerge.recipes.slices import SliceId

_LOWER = 1 << SHIFT  # magnitudes of a bin


@dataclass(frozen=True)
class Members:
    """The tensors of a scope.

    Attributes:
        counts: numbers of elements by the tensors' names in the pool's layout, in order.
        numbers: of the tensors in that order, likewise.
        total: elements of them all.
        shapes: likewise.
    """

    counts: Mapping[str, int]
    numbers: Mapping[str, int]
    total: int
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(pool: Pool, models: Sequence[str], scope: str, slice_: SliceId) -> Members:
        """Those of a layer or of a whole model, as far as all of some models have them.

        Args:
            models: the base among them.
            scope: ``layer`` or ``model``.
            slice_: of the models; one that is in no layer is a layer of its own.
        """
        depth, layout = min(pool.info.depth(model) for model in models), pool.layout
        shapes: dict[str, tuple[int, ...]] = {}
        for each in pool.info.slices_at(depth):
            if scope == "layer" and (each.layer != slice_.layer or (each.layer is None and each != slice_)):
                continue
            like = layout.tensors[each if each in layout.tensors else SliceId(each.component, 0)]
            for name, shaped in zip(layout.of_slice(each), like, strict=True):
                if pool.is_merged(shaped):
                    shapes[name] = tuple(layout.shapes[shaped])
        return Members.shaped(shapes)

    @staticmethod
    def shaped(shapes: Mapping[str, tuple[int, ...]]) -> Members:
        """Tensors of some shapes, by name."""
        counts = {name: math.prod(shape) for name, shape in shapes.items()}
        return Members(counts, {name: number for number, name in enumerate(counts)}, sum(counts.values()), shapes)


class Ranked(Protocol):
    """What is asked of one tensor's task vector."""

    def ranks(self, index: int) -> Ranks:
        """The histogram of its magnitudes."""

    def bin(self, index: int, number: int, size: int) -> torch.Tensor:
        """What a bin of it holds, `size` elements: `torch_statistics.Bin`."""


class Place(NamedTuple):
    """Where a rank is.

    Attributes:
        bits: of its magnitude, as float32.
        member: number of its tensor.
        end: one more than the index of its element there.
    """

    bits: int
    member: int
    end: int


class ScopeRanks:
    """Ranks of a task vector's magnitudes in a scope, by falling magnitude.

    Args:
        key: what the notes are to call it: model, base and scope.
        members: the tensors.
        notes: of the pool.
        open_: gives the statistics of one tensor's task vector, by its name.
    """

    def __init__(self, key: Hashable, members: Members, notes: Notes, open_: Callable[[str], Ranked]) -> None:
        self._key, self._notes, self._open = key, notes, open_
        self.members = members

    def cut(self, name: str, first: int, last: int) -> Cut | None:
        """What keeps of one tensor the ranks ``first <= rank < last`` of all; ``None`` where that is all but zeros."""
        return cut_between(first, last, self.members.total, lambda rank: self.place(name, rank))

    def place(self, name: str, rank: int) -> tuple[int, int]:
        """The magnitude bits of a rank, and where in one tensor those of this magnitude end that come before it or
        have it (`mix.Scopes.place`)."""
        found = self._notes.small(("rank", self._key, rank), lambda: self._find(rank))
        own = self.members.numbers[name]
        if own == found.member:
            return found.bits, found.end
        return found.bits, self.members.counts[name] if own < found.member else 0

    def _find(self, rank: int) -> Place:
        """Look a rank up: in a histogram, in that of one bin of it, and among what is equal."""
        total, each = self._ranks()
        number, _, within = total.find(rank)
        held = [_held(ranks, number) for ranks in each]

        def counted() -> NDArray[np.int64]:
            lower = np.zeros(_LOWER, np.int64)
            for name, size in zip(self.members.counts, held, strict=True):
                if size:
                    bits = (LARGEST_BITS - (self._bin(name, number, size) >> 32)) & (_LOWER - 1)
                    values, counts = torch.unique_consecutive(bits, return_counts=True)  # they are in order
                    lower[values.cpu().numpy()] += counts.cpu().numpy()
            return lower

        lower = self._notes.large(("lower", self._key, number), 8 * _LOWER, counted, at_once=True)
        falling = (counted() if lower is None else lower)[::-1]
        above = np.cumsum(falling)
        at = int(np.searchsorted(above, within, side="right"))
        bits = (number << SHIFT) + _LOWER - 1 - at
        left = within - int(above[at] - falling[at])
        for member, (name, size) in enumerate(zip(self.members.counts, held, strict=True)):
            if size:
                keys = self._bin(name, number, size)
                least = (LARGEST_BITS - bits) << 32
                begin, end = torch.searchsorted(keys, keys.new_tensor([least, least + WORD])).tolist()
                if left < end - begin:
                    return Place(bits, member, (int(keys[begin + left]) & WORD) + 1)
                left -= end - begin
        raise AssertionError("a rank is of some element")

    def _ranks(self) -> tuple[Ranks, list[Ranks]]:
        """The histogram of all magnitudes, and those of the tensors."""

        def find() -> tuple[Ranks, list[Ranks]]:
            counts, each = np.zeros(BINS, np.int64), []
            for name in self.members.counts:
                try:
                    each.append(self._open(name).ranks(0))
                except EvomergeError as error:
                    given = f"of its scope, tensor {name!r}: {error.given}"
                    raise type(error)(given, error.allowed, error.do) from error
                counts[each[-1].bins] += np.diff(each[-1].above)
            return Ranks.of(counts), each

        return self._notes.small(("scope", self._key), find, lasting=True)

    def _bin(self, name: str, number: int, size: int) -> torch.Tensor:
        return self._open(name).bin(0, number, size)


def _held(ranks: Ranks, number: int) -> int:
    """How many elements a bin of a histogram holds."""
    at = np.flatnonzero(ranks.bins == number)
    return int(ranks.above[at[0] + 1] - ranks.above[at[0]]) if len(at) else 0
