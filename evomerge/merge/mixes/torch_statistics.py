"""Statistics of a tensor's inputs by torch operations, on any device: bit for bit those of the CPU's kernels.

Sums are added up in the order in which `kernels.sums` adds; a rank is found by a histogram of the magnitudes' highest
bits, then in what one bin of it holds. Both are noted once per pool, so that no candidate sorts a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.kernels.mixing import BLOCK
from evomerge.merge.kernels.selection import BINS, SHIFT
from evomerge.merge.kernels.sums import CHUNK, GROUP
from evomerge.merge.mixes.cpu_statistics import INFINITE_BIN, Ranks, exact_sum, not_finite
from evomerge.merge.mixes.masks import drop_
from evomerge.merge.mixes.mix import Cut, cut_between
from evomerge.merge.mixes.torch_mix import cut_

Bin = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Magnitude bits and indexes of a bin's elements, by falling magnitude and of equals the first ones first."""

LARGE = 1 << 25
"""Elements of a bin that are no longer copied to the host, where 16 bytes are kept of each."""

_CPU_PART, _DEVICE_PART = 1 << 18, 1 << 26  # elements worked on at a time, multiples of `CHUNK`
_SIZE = 0x7FFFFFFF


class TensorStatistics:
    """`mix.Statistics` of flat tensors on any device, computed when asked.

    Args:
        inputs, base: flat tensors of any merged dtype, on one device.
        shape: of the tensor.
        keys: mask keys of the inputs.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        shape: tuple[int, ...],
        keys: Sequence[int] = (),
    ) -> None:
        self._inputs, self._base, self._keys = inputs, base, keys
        self.shape = shape
        self.count = math.prod(shape)
        self.has_base = base is not None
        self._device = inputs[0].device

    def _parts(self) -> Iterator[slice]:
        size = _CPU_PART if self._device.type == "cpu" else _DEVICE_PART
        for start in range(0, self.count, size):
            yield slice(start, min(start + size, self.count))

    def _task(self, index: int, at: slice) -> torch.Tensor:
        """Elements of a task vector as a new float32 tensor."""
        assert self._base is not None, "methods that need a base declare it"
        return self._inputs[index][at].float() - self._base[at].float()

    def _bits(self, index: int, at: slice) -> torch.Tensor:
        """The bits of their magnitudes, int32."""
        return self._task(index, at).view(torch.int32).bitwise_and_(_SIZE)

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors; NaN where they are not finite."""
        n = len(self._inputs)
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        sums: list[torch.Tensor] = []
        for at in self._parts():
            values = [self._task(i, at) if differences else x[at].float() for i, x in enumerate(self._inputs)]
            whole = [_padded(value, CHUNK).view(-1, CHUNK // (GROUP * BLOCK), GROUP, BLOCK) for value in values]
            sums.append(torch.stack([_inner(whole[i], whole[j]) for i, j in pairs]))
        found = torch.cat(sums, 1).cpu().numpy() if sums else np.zeros((len(pairs), 0))
        products = np.zeros((n, n))
        for (i, j), chunks in zip(pairs, found, strict=True):
            products[i, j] = products[j, i] = _sum(chunks)
        return products

    def ranks(self, index: int) -> Ranks:
        """The histogram of a task vector's magnitudes.

        Raises:
            EvomergeError: an element is not finite.
        """
        total = torch.zeros(BINS, dtype=torch.int64, device=self._device)
        for at in self._parts():
            total += torch.bincount(self._bits(index, at) >> SHIFT, minlength=BINS)
        bins = total.cpu().numpy()
        if bins[INFINITE_BIN:].any():
            raise not_finite()
        return Ranks.of(bins)

    def bin(self, index: int, number: int) -> Bin:
        """What a bin of a task vector's histogram holds: one pass over the task vector."""
        bits, places = [], []
        for at in self._parts():
            part = self._bits(index, at)
            inside = torch.nonzero((part >> SHIFT) == number).view(-1)
            bits.append(part[inside].cpu().numpy().astype(np.int64))
            places.append(inside.cpu().numpy() + at.start)
        found, at_ = np.concatenate(bits), np.concatenate(places)
        order = np.argsort(-found, kind="stable")
        return found[order], at_[order]

    def cut(self, index: int, first: int, last: int) -> Cut | None:
        """The cut that keeps the ranks from `first` to `last`; ``None`` where that is all but zeros."""
        return self.cut_from(self.ranks(index), index, first, last, lambda number, size: self.bin(index, number))

    def cut_from(self, ranks: Ranks, index: int, first: int, last: int, held: Callable[[int, int], Bin]) -> Cut | None:
        """`cut` from a histogram and ``held(bin, size)``, which gives what a bin of that size holds."""

        def at(rank: int) -> tuple[int, int]:
            """The magnitude bits of a rank, and one more than the index of its element."""
            number, size, within = ranks.find(rank)
            if size > LARGE:
                return self._at(index, number, within)
            bits, places = held(number, size)
            return int(bits[within]), int(places[within]) + 1

        return cut_between(first, last, self.count, at)

    def _at(self, index: int, number: int, within: int) -> tuple[int, int]:
        """`cut_from`'s look-up without the bin's content: by a second histogram, of the lower bits, and by counting."""
        lower = torch.zeros(1 << SHIFT, dtype=torch.int64, device=self._device)
        for at in self._parts():
            bits = self._bits(index, at)
            inside = bits[(bits >> SHIFT) == number].bitwise_and_((1 << SHIFT) - 1)
            lower += torch.bincount(inside, minlength=1 << SHIFT)
        counts = Ranks.of(lower.cpu().numpy())
        low, _, left = counts.find(within)
        value = number << SHIFT | low
        for at in self._parts():
            equal = self._bits(index, at) == value
            many = int(torch.count_nonzero(equal))
            if left < many:
                return value, at.start + int(torch.nonzero(equal)[left]) + 1
            left -= many
        raise AssertionError("a rank is one of the elements'")

    def magnitude_kept(self, index: int, cut: Cut | None, density: float | None) -> float:
        """The share of the sum of magnitudes that a cut and a random mask leave; NaN where the sum is not finite."""
        # Partial sums begin anew where a cut changes its rule: their order is that of the CPU's kernel.
        splits = sorted({cut.low_end, cut.high_start}) if cut is not None else []
        whole: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        for at in self._parts():
            task = self._task(index, at)
            left = task.clone()
            if cut is not None:
                cut_(left, cut, at.start)
            if density is not None:
                drop_(left, self._keys[index], density, at.start)
            for values, sums in ((task, whole), (left, kept)):
                sums.append(_magnitudes(_padded(values, CHUNK).view(-1, CHUNK // BLOCK, BLOCK)))
                for chunk in {split // CHUNK * CHUNK for split in splits if split % BLOCK}:
                    if at.start <= chunk < at.stop:
                        own = values[chunk - at.start : chunk - at.start + CHUNK]
                        ends = [split - chunk for split in splits if chunk < split < chunk + len(own)]
                        runs = [_padded(run, BLOCK) for run in torch.tensor_split(own, ends)]
                        sums[-1][(chunk - at.start) // CHUNK] = _magnitudes(torch.cat(runs).view(1, -1, BLOCK))[0]
        before, after = (_sum(torch.cat(parts).cpu().numpy()) if parts else 0.0 for parts in (whole, kept))
        return after / before if before else 1.0

    def row_ranks(self, index: int) -> torch.Tensor:
        """The rank of every element in its row (see `by_magnitude`): int16, to be read as unsigned, or int32 for rows
        of more than 2**16; flat."""
        width = row_width(self.shape)
        kind = torch.int16 if width <= 1 << 16 else torch.int32
        ranks = torch.empty(self.count, dtype=kind, device=self._device)
        numbers = torch.arange(width, device=self._device).to(kind)
        rows = max(1, (_CPU_PART if self._device.type == "cpu" else _DEVICE_PART) // max(1, width)) * width
        for start in range(0, self.count, max(1, rows)):
            at = slice(start, min(start + rows, self.count))
            order = by_magnitude(self._task(index, at).view(-1, width))
            ranks[at].view(-1, width).scatter_(1, order, numbers.expand_as(order))
        return ranks


def _sum(chunks: NDArray[np.float64]) -> float:
    return exact_sum(chunks) if np.isfinite(chunks).all() else math.nan


def row_width(shape: tuple[int, ...]) -> int:
    """Elements that belong to an index of a tensor's first dimension; all of a vector's."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def by_magnitude(task: torch.Tensor) -> torch.Tensor:
    """The columns of each row by falling magnitude, of equals the earlier first: int64, of the shape of `task`.

    Args:
        task: float32, of shape ``(rows, width)``.
    """
    # Magnitudes and columns in one number sort faster than by a stable sort, and the same on every device.
    keys = task.view(torch.int32).bitwise_or(-(2**31)).bitwise_not_().to(torch.int64)
    keys = keys.bitwise_left_shift_(32).add_(torch.arange(task.shape[1], device=task.device))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(dim=1).values
    return keys.bitwise_and_(2**32 - 1)


def _padded(values: torch.Tensor, multiple: int) -> torch.Tensor:
    """With zeros at the end, which change no sum."""
    return torch.nn.functional.pad(values, (0, -len(values) % multiple))


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products as `kernels.sums.gram` adds them up: float64, one for each chunk.

    Args:
        a, b: float32, of shape ``(chunks, groups, blocks, BLOCK)``.
    """
    singles = torch.zeros_like(a[:, :, 0])
    for block in range(a.shape[2]):
        singles += a[:, :, block] * b[:, :, block]
    total = torch.zeros_like(singles[:, 0], dtype=torch.float64)
    for group in range(a.shape[1]):
        total += singles[:, group].double()
    return _folded(total)


def _magnitudes(values: torch.Tensor) -> torch.Tensor:
    """Sums of magnitudes as `kernels.sums.magnitudes` adds them up: float64, one for each chunk.

    Args:
        values: float32, of shape ``(chunks, blocks, BLOCK)``.
    """
    total = torch.zeros_like(values[:, 0], dtype=torch.float64)
    for block in range(values.shape[1]):
        total += values[:, block].abs().double()
    return _folded(total)


def _folded(total: torch.Tensor) -> torch.Tensor:
    """Sums of rows, halves first."""
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total.view(-1)
