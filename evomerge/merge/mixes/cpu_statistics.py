"""Statistics of a tensor's inputs on the CPU, by the compiled kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.merge.kernels.selection import BINS, SHIFT, gather, histogram, magnitude_bits, order
from evomerge.merge.kernels.sums import CHUNK, gram, magnitudes
from evomerge.merge.mixes.cpu_mix import KINDS, cut_row, in_parts
from evomerge.merge.mixes.masks import kept_below
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, cut_between


@dataclass(frozen=True)
class Window:
    """How much of mapped tensors may take memory at a time.

    Attributes:
        elements: of each tensor, a multiple of `sums.CHUNK`.
        passed: called when that many have been gone through.
    """

    elements: int
    passed: Callable[[], None]


LARGEST_BITS = 0x7FFFFFFF
"""Of any magnitude: what `CpuStatistics.bin` subtracts from, so that numbers ascend with falling magnitude."""

INFINITE_BIN = 0x7F800000 >> SHIFT
"""The first bin of magnitudes that are not finite."""


@dataclass(frozen=True)
class Ranks:
    """How many elements of a task vector have which magnitude, to six bits: what finds a rank in one look.

    Attributes:
        bins: numbers of the bins that are not empty, the largest magnitudes first.
        above: how many elements are in bins before each, and in all at the end.
        zeros: how many are zero, where that was counted.
    """

    bins: NDArray[np.int64]
    above: NDArray[np.int64]
    zeros: int = 0

    @staticmethod
    def of(counts: NDArray[np.int64], zeros: int = 0) -> Ranks:
        """Those of a histogram: how many elements are in each bin, the smallest magnitudes first."""
        filled = np.flatnonzero(counts)[::-1]
        return Ranks(filled, np.concatenate([[0], np.cumsum(counts[filled])]), zeros)

    def find(self, rank: int) -> tuple[int, int, int]:
        """The bin that a rank is in, how many elements that has, and the rank among them."""
        number = int(np.searchsorted(self.above, rank, side="right")) - 1
        before, end = int(self.above[number]), int(self.above[number + 1])
        return int(self.bins[number]), end - before, rank - before


class CpuStatistics:
    """`mix.Statistics` of flat tensors on the CPU.

    Args:
        inputs, base: flat and contiguous, of any merged dtypes.
        shape: of the tensor.
        keys: mask keys of the inputs.
        window: tells how much of the tensors may take memory at a time; all of them for ``None``.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        shape: tuple[int, ...],
        keys: Sequence[int] = (),
        window: Window | None = None,
    ) -> None:
        self._inputs, self._base, self._keys = inputs, base, keys
        self._window = window
        self.shape = shape
        self.count = math.prod(shape)
        self.has_base = base is not None

    def _origin(self) -> tuple[int, int]:
        assert self._base is not None, "methods that need a base declare it"
        return self._base.data_ptr(), KINDS[self._base.dtype]

    def _pass(self, run: Callable[[int, int], int]) -> None:
        """Go through the tensors once, window by window."""
        size = min(self._window.elements, self.count) if self._window is not None else self.count
        for start in range(0, self.count, max(size, 1)):
            count = min(size, self.count - start)
            in_parts(functools.partial(_shifted, run, start), count)
            if self._window is not None and size < self.count:
                self._window.passed()

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors.

        Raises:
            EvomergeError: an input is not finite.
        """
        n = len(self._inputs)
        addresses = np.array([x.data_ptr() for x in self._inputs], np.int64)
        kinds = np.array([KINDS[x.dtype] for x in self._inputs], np.int64)
        base, kind = self._origin() if differences else (0, 0)
        chunks = np.zeros((-(-self.count // CHUNK), n * (n + 1) // 2))
        self._pass(lambda begin, end: gram(addresses, kinds, base, kind, begin, end, chunks))
        products = np.zeros((n, n))
        for pair, (i, j) in enumerate((row, column) for row in range(n) for column in range(row + 1)):
            products[i, j] = products[j, i] = exact_sum(chunks[:, pair])
        return products

    def ranks(self, index: int) -> Ranks:
        """The histogram of a task vector's magnitudes.

        Raises:
            EvomergeError: an element is not finite.
        """
        base, base_kind = self._origin()
        task = self._inputs[index]
        address, kind = task.data_ptr(), KINDS[task.dtype]
        counted: list[NDArray[np.uint32]] = []

        def count(begin: int, end: int) -> int:
            bins = np.zeros((4, BINS), np.uint32)
            histogram(address, kind, base, base_kind, begin, end, bins)
            counted.append(bins)
            return 0

        self._pass(count)
        bins = np.sum([part.sum(0, dtype=np.int64) for part in counted], axis=0)
        if bins[INFINITE_BIN:].any():
            raise not_finite()
        return Ranks.of(bins)

    def size(self, index: int, scope: str) -> int:
        """Number of elements: who knows one tensor takes it for the whole model."""
        return self.count

    def cut(self, index: int, first: int, last: int, scope: str = "tensor") -> Cut | None:
        """The cut that keeps the ranks from `first` to `last`; ``None`` where that is all but zeros."""
        return self.cut_from(self.ranks(index), index, first, last)

    def cut_from(self, ranks: Ranks, index: int, first: int, last: int) -> Cut | None:
        """`cut` from a histogram of magnitudes: one pass over the task vector for each end that lies inside a bin."""
        return cut_between(first, last, self.count, lambda rank: self._at(ranks, index, rank))

    def _at(self, ranks: Ranks, index: int, rank: int) -> tuple[int, int]:
        """The magnitude bits of a rank, and one more than the index of its element."""
        bin_, size, within = ranks.find(rank)
        bits, places = self._gathered(index, bin_, size)
        value = int(np.partition(bits, size - 1 - within)[size - 1 - within])
        equal = places[bits == value]
        return value, int(equal[within - int(np.count_nonzero(bits > value))]) + 1

    def bin(self, index: int, number: int, size: int) -> torch.Tensor:
        """What a bin of a task vector's histogram holds, `size` elements: as `torch_statistics.Bin`."""
        bits, places = self._gathered(index, number, size)
        keys = ((LARGEST_BITS - bits.astype(np.int64)) << 32) | places
        keys.sort()
        return torch.from_numpy(keys)

    def _gathered(self, index: int, bin_: int, size: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The magnitude bits and places of what a bin holds, in order: one pass."""
        base, base_kind = self._origin()
        task = self._inputs[index]
        address, kind = task.data_ptr(), KINDS[task.dtype]
        parts: dict[int, tuple[NDArray[np.uint32], NDArray[np.int64]]] = {}

        def collect(begin: int, end: int) -> int:
            room = min(size, end - begin)
            bits, places = np.empty(room, np.uint32), np.empty(room, np.int64)
            many = gather(address, kind, base, base_kind, begin, end, bin_, bits, places)
            parts[begin] = bits[:many], places[:many]
            return 0

        self._pass(collect)
        none = np.empty(0, np.uint32), np.empty(0, np.int64)  # of a tensor without elements
        found = [parts[begin] for begin in sorted(parts)] or [none]
        return np.concatenate([bits for bits, _ in found]), np.concatenate([places for _, places in found])

    def order(self, index: int) -> NDArray[np.uint32] | None:
        """The indexes of a task vector's elements by falling magnitude: 4 bytes each, found at 15 ns each.

        ``None`` for tensors of 2**32 elements and more.

        Raises:
            EvomergeError: an element is not finite.
        """
        if self.count >= 1 << 32:
            return None
        base, base_kind = self._origin()
        task = self._inputs[index]
        result = np.empty(self.count, np.uint32)
        order(task.data_ptr(), KINDS[task.dtype], base, base_kind, self.count, result)
        if self.count and self._bits(index, int(result[0])) > LARGEST:
            raise not_finite()
        return result

    def cut_from_order(self, order: NDArray[np.uint32], index: int, first: int, last: int) -> Cut | None:
        """`cut` from the sorted order: two look-ups, of the first and of the last rank."""

        def at(rank: int) -> tuple[int, int]:
            element = int(order[rank])
            return self._bits(index, element), element + 1

        return cut_between(first, last, self.count, at)

    def _bits(self, index: int, element: int) -> int:
        """The magnitude bits of one element of a task vector."""
        task = self._inputs[index]
        return int(magnitude_bits(task.data_ptr(), KINDS[task.dtype], *self._origin(), element))

    def row_ranks(self, index: int) -> None:
        """Methods that want them go by their function, row by row in the cache."""

    def magnitude_kept(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> float:
        """The share of the sum of magnitudes that a cut and a random mask leave.

        Raises:
            EvomergeError: an input is not finite.
        """
        base, base_kind = self._origin()
        task = self._inputs[index]
        address, kind = task.data_ptr(), KINDS[task.dtype]
        limits = np.array(cut_row(cut), np.int64)
        key, bound = np.uint64(0), -1
        if density is not None and density < 1:
            key, bound = np.uint64(self._keys[index]), kept_below(density)
        chunks = np.zeros((-(-self.count // CHUNK), 2))
        self._pass(
            lambda begin, end: magnitudes(address, kind, base, base_kind, begin, end, limits, key, bound, chunks)
        )
        whole, kept = folded_sum(chunks[:, 0]), folded_sum(chunks[:, 1])
        return kept / whole if whole else 1.0


def _shifted(run: Callable[[int, int], int], start: int, begin: int, end: int) -> int:
    return run(start + begin, start + end)


def exact_sum(parts: NDArray[np.float64]) -> float:
    """The sum, rounded once: the same in any order.

    Raises:
        EvomergeError: it is not finite.
    """
    if not np.isfinite(parts).all():
        raise not_finite()
    return math.fsum(parts.tolist())


def folded_sum(parts: NDArray[np.float64]) -> float:
    """The sum, halves first: in an order that devices can follow.

    Raises:
        EvomergeError: it is not finite.
    """
    if not np.isfinite(parts).all():
        raise not_finite()
    total = np.concatenate([parts, np.zeros(power_of_two(len(parts)) - len(parts))])
    while len(total) > 1:
        half = len(total) // 2
        total = total[:half] + total[half:]
    return float(total[0])


def power_of_two(count: int) -> int:
    """The smallest that is not less than a count."""
    return 1 << max(0, count - 1).bit_length()


def not_finite() -> EvomergeError:
    """The error for inputs with NaN or infinite elements; the engine adds the tensor's name."""
    return EvomergeError(
        "a source has elements that are NaN or infinite", "finite numbers", "check the sources' weights"
    )
