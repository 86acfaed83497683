"""Ranks of what is computed of task vectors, element by element, over a layer or the whole model: exact ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.scopes import Members
from evomerge.merge.methods.blocks import blocks
from evomerge.merge.methods.sphere import check_finite

_SHIFT = 16
_BINS = 1 << _SHIFT  # of the upper half of a float32's bits; as many values lie in each
_SIGN = 1 << 31

Opened = tuple[Sequence[torch.Tensor], torch.Tensor]
"""The models' tensors and the base's: flat, of any merged dtypes, on one device."""
Score = Callable[[Sequence[Any]], Sequence[Any]]
"""Makes values of blocks of task vectors, element by element: float32, numpy's on the CPU and tensors elsewhere."""


class _Counted(NamedTuple):
    """How many values lie in which bin.

    Attributes:
        bins: numbers of those that hold some, rising.
        below: how many values lie in bins before each, and last how many there are.
    """

    bins: NDArray[np.int64]
    below: NDArray[np.int64]

    @staticmethod
    def of(counts: NDArray[np.int64]) -> _Counted:
        """From the counts of all bins."""
        bins = np.flatnonzero(counts)
        return _Counted(bins, np.concatenate([[0], np.cumsum(counts[bins])]))

    @property
    def nbytes(self) -> int:
        return self.bins.nbytes + self.below.nbytes

    def find(self, rank: int) -> tuple[int, int]:
        """The bin that a rank lies in, by rising value, and which of that bin's values it is."""
        at = int(np.searchsorted(self.below, rank, side="right")) - 1
        return int(self.bins[at]), rank - int(self.below[at])


class ScopeValues:
    """Values over the tensors of a scope, and what their ranks are.

    They are counted by the upper halves of their bits, and those of a bin that a rank lies in by the lower halves: the
    first count is noted for all ranks, the second for those of that bin. No values are kept.

    Args:
        key: what the notes are to call it: models, base and scope.
        members: the tensors.
        notes: of the pool.
        open_: gives the models' tensors of a name, and the base's.
    """

    def __init__(self, key: Hashable, members: Members, notes: Notes, open_: Callable[[str], Opened]) -> None:
        self._key, self._members, self._notes, self._open = key, members, notes, open_

    def at(self, of: Hashable, score: Score, ranks: Callable[[int], Sequence[int]]) -> list[tuple[float, ...]]:
        """The values of some ranks, by rising value, for each of what `score` makes.

        Args:
            of: what the notes are to call the values.
            score: makes them.
            ranks: gives the ranks, from 0 on, of the number of elements.

        Raises:
            EvomergeError: a tensor cannot be read or is not finite; it is named.
        """
        asked = tuple(ranks(self._members.total))
        return self._notes.small(("values", self._key, of, asked), lambda: self._find(of, score, asked))

    def _find(self, of: Hashable, score: Score, ranks: Sequence[int]) -> list[tuple[float, ...]]:
        upper = self._notes.small(("value bins", self._key, of), lambda: self._upper(score), lasting=True)
        places = [[counted.find(rank) for rank in ranks] for counted in upper]
        wanted = sorted({(number, at) for number, own in enumerate(places) for at, _ in own})

        @functools.cache
        def lower() -> dict[tuple[int, int], _Counted]:
            return self._lower(score, wanted)

        def value(number: int, at: int, within: int) -> float:
            name = "value bin", self._key, of, number, at
            kept = self._notes.large(name, 16 * upper_held(number, at), lambda: lower()[number, at], at_once=True)
            return _value((at << _SHIFT) + (kept or lower()[number, at]).find(within)[0])

        def upper_held(number: int, at: int) -> int:
            counted = upper[number]
            place = int(np.searchsorted(counted.bins, at))
            return min(_BINS, int(counted.below[place + 1] - counted.below[place]))

        return [tuple(value(number, *place) for place in own) for number, own in enumerate(places)]

    def _upper(self, score: Score) -> list[_Counted]:
        """The counts of all bins."""
        totals: list[NDArray[np.int64]] = []
        for keys in self._keys(score):
            totals = totals or [np.zeros(_BINS, np.int64) for _ in keys]
            for total, own in zip(totals, keys, strict=True):
                total += torch.bincount(own >> _SHIFT, minlength=_BINS).cpu().numpy()
        return [_Counted.of(total) for total in totals]

    def _lower(self, score: Score, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], _Counted]:
        """The counts of what lies in some bins."""
        totals = {each: np.zeros(_BINS, np.int64) for each in wanted}
        for keys in self._keys(score):
            for (number, at), total in totals.items():
                inside = keys[number][keys[number] >> _SHIFT == at] & (_BINS - 1)
                total += torch.bincount(inside, minlength=_BINS).cpu().numpy()
        return {each: _Counted.of(total) for each, total in totals.items()}

    def _keys(self, score: Score) -> Iterator[list[torch.Tensor]]:
        """The values, block by block, as whole numbers of 32 bits in their order."""
        for name in self._members.counts:
            try:
                inputs, base = self._open(name)
                for block in blocks(base.numel(), base.device):
                    below = base[block].float()
                    tasks = [x[block].float() - below for x in inputs]
                    bad = {i: 0.0 if bool(torch.isfinite(x).all()) else torch.nan for i, x in enumerate(tasks)}
                    check_finite(bad, len(tasks))
                    given = [x.numpy() for x in tasks] if base.device.type == "cpu" else tasks
                    yield [_ordered(torch.as_tensor(values)) for values in score(given)]
            except EvomergeError as error:
                raise type(error)(f"of its scope, tensor {name!r}: {error.given}", error.allowed, error.do) from error


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """The bits of float32 values, changed so that they are in the values' order: int64; -0 is 0."""
    bits = (values + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -1 - bits, bits + _SIGN)


def _value(key: int) -> float:
    """The value of such bits."""
    bits = key - _SIGN if key >= _SIGN else (1 << 32) - 1 - key
    return float(np.uint32(bits).view(np.float32))
