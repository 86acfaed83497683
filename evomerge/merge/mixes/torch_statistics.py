"""Statistics of a tensor's inputs by torch operations, on any device: bit for bit those of the CPU's kernels.

Sums are added up in the order in which `kernels.sums` adds; a rank is found by a histogram of the magnitudes' highest
bits, then in what one bin of it holds. Both are noted once per pool, so that no candidate sorts a tensor. What a
candidate asks of an accelerator stays there as tensors of no dimension: the host does not wait for it.
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
from evomerge.merge.mixes.cpu_statistics import INFINITE_BIN, LARGEST_BITS, Ranks, exact_sum, not_finite, power_of_two
from evomerge.merge.mixes.magnitude_order import WORD, ascending, by_magnitude, keys_of, row_width
from evomerge.merge.mixes.masks import drop_
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, cut_between
from evomerge.merge.mixes.torch_mix import cut_
from evomerge.merge.mixes.torch_sums import folded, inner_products, magnitudes, padded

Bin = torch.Tensor
"""A bin's elements by falling magnitude, of equals the first ones first: in the upper word of each int64 what its
magnitude bits lack to `LARGEST_BITS`, in the lower one its index."""

LARGE = 1 << 25
"""Elements of a bin that are no longer collected: 8 bytes of each, and as many while they are sorted."""

_CPU_PART, _DEVICE_PART = 1 << 18, 1 << 26  # elements worked on at a time, multiples of `CHUNK`
_BIN_PART = 1 << 24  # where each takes 25 bytes


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

    def _parts(self, most: int = _DEVICE_PART) -> Iterator[slice]:
        size = _CPU_PART if self._device.type == "cpu" else most
        for start in range(0, self.count, size):
            yield slice(start, min(start + size, self.count))

    def _task(self, index: int, at: slice) -> torch.Tensor:
        """Elements of a task vector as a new float32 tensor."""
        assert self._base is not None, "methods that need a base declare it"
        return self._inputs[index][at].float() - self._base[at].float()

    def _bits(self, index: int, at: slice) -> torch.Tensor:
        """The bits of their magnitudes, int32."""
        return self._task(index, at).view(torch.int32).bitwise_and_(LARGEST_BITS)

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors; NaN where they are not finite."""
        n = len(self._inputs)
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        sums: list[torch.Tensor] = []
        for at in self._parts():
            values = [self._task(i, at) if differences else x[at].float() for i, x in enumerate(self._inputs)]
            whole = [padded(value, CHUNK).view(-1, CHUNK // (GROUP * BLOCK), GROUP, BLOCK) for value in values]
            sums.append(torch.stack([inner_products(whole[i], whole[j]) for i, j in pairs]))
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
        total = torch.zeros(BINS + 1, dtype=torch.int64, device=self._device)
        for at in self._parts():
            bits = self._bits(index, at)
            total[:BINS] += torch.bincount(bits >> SHIFT, minlength=BINS)
            total[BINS] += (bits == 0).sum()
        *_, zeros = bins = total.cpu().numpy()
        if bins[INFINITE_BIN:BINS].any():
            raise not_finite()
        return Ranks.of(bins[:BINS], int(zeros))

    def bin(self, index: int, number: int, size: int) -> Bin:
        """What a bin of a task vector's histogram holds, `size` elements: one pass over the task vector."""
        # In place of one behind the others goes what is not in the bin.
        found = torch.empty(size + 1, dtype=torch.int64, device=self._device)
        before = torch.full((), -1, dtype=torch.int64, device=self._device)
        for at in self._parts(_BIN_PART):
            bits = self._bits(index, at)
            inside = (bits >> SHIFT) == number
            places = inside.cumsum(0).add_(before)
            before = places[-1].clone()
            keys = keys_of(bits).add_(torch.arange(at.start, at.stop, device=self._device))
            found.scatter_(0, places.masked_fill_(~inside, size), keys)
        return ascending(found[:size].view(1, -1)).view(-1)

    def size(self, index: int, scope: str) -> int:
        """Number of elements: who knows one tensor takes it for the whole model."""
        return self.count

    def cut(self, index: int, first: int, last: int, scope: str = "tensor") -> Cut | DeviceCut | None:
        """The cut that keeps the ranks from `first` to `last`; ``None`` where that is all but zeros."""
        return self.cut_from(self.ranks(index), index, first, last, lambda number, size: self.bin(index, number, size))

    def cut_from(
        self, ranks: Ranks, index: int, first: int, last: int, held: Callable[[int, int], Bin]
    ) -> Cut | DeviceCut | None:
        """`cut` from a histogram and ``held(bin, size)``, which gives what a bin of that size holds.

        On an accelerator the host does not wait for it.
        """

        def at(rank: int) -> torch.Tensor:
            """The magnitude bits of a rank, and one more than the index of its element: int64, on the device."""
            number, size, within = ranks.find(rank)
            if size > LARGE:
                return self._at(index, number, within)
            key = held(number, size)[within]
            return torch.stack([LARGEST_BITS - (key >> 32), (key & WORD) + 1])

        if self._device.type == "cpu":
            return cut_between(first, last, self.count, lambda rank: tuple(at(rank).tolist()))
        last = min(last, self.count)
        assert 0 <= first < last, "a cut keeps something"
        if first == 0 and last > self.count - 1 - ranks.zeros:  # as `cut_between` says of a smallest one that is zero
            return None
        low = at(last - 1) if last < self.count else self._numbers(0, self.count)
        if first == 0:
            return DeviceCut(torch.cat([low, self._numbers(LARGEST + 1, 0)]), False)
        high = at(first - 1)
        high[:1] += high[:1] == LARGEST  # see `cpu_mix.cut_row`
        return DeviceCut(torch.cat([low, high]), True)

    def _numbers(self, *numbers: int) -> torch.Tensor:
        """Numbers of the host on the device, without a copy that it would wait for: int64."""
        return torch.stack([torch.full((), number, dtype=torch.int64, device=self._device) for number in numbers])

    def _at(self, index: int, number: int, within: int) -> torch.Tensor:
        """`cut_from`'s look-up without the bin's content: by a second histogram, of the lower bits, and by counting."""
        # One more than there are takes what is in other bins.
        lower = torch.zeros((1 << SHIFT) + 1, dtype=torch.int64, device=self._device)
        for at in self._parts(_BIN_PART):
            bits = self._bits(index, at)
            own = torch.where((bits >> SHIFT) == number, bits & ((1 << SHIFT) - 1), 1 << SHIFT).long()
            lower.scatter_add_(0, own, torch.ones_like(own))
        above = lower[:-1].flip(0).cumsum(0)
        place = (above <= within).sum()  # of the value, the largest first
        value = ((number + 1) << SHIFT) - 1 - place
        left = within - torch.where(place > 0, above.gather(0, (place - 1).clamp_min(0).view(1))[0], 0)
        counts = [padded((self._bits(index, at) == value).int(), CHUNK).view(-1, CHUNK).sum(1) for at in self._parts()]
        upto = torch.cat(counts).cumsum(0)
        chunk = (upto <= left).sum()
        left = left - torch.where(chunk > 0, upto.gather(0, (chunk - 1).clamp_min(0).view(1))[0], 0)
        places, inside = self._chunk(chunk)
        equal = (self._gathered(index, places).view(torch.int32).bitwise_and_(LARGEST_BITS) == value) & inside
        element = chunk * CHUNK + (equal.cumsum(0) <= left).sum()
        return torch.stack([value, element + 1])

    @property
    def _chunk_size(self) -> int:
        """Elements of a chunk that are looked at: of a small tensor's those that there are, in whole blocks."""
        return min(CHUNK, -(-self.count // BLOCK) * BLOCK)

    def _chunk(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Indexes of the elements of a chunk, and which of them there are."""
        places = torch.arange(self._chunk_size, device=self._device) + chunk * CHUNK
        return places.clamp_max(self.count - 1), places < self.count

    def _gathered(self, index: int, places: torch.Tensor) -> torch.Tensor:
        """Elements of a task vector at some places."""
        assert self._base is not None, "methods that need a base declare it"
        return self._inputs[index][places].float() - self._base[places].float()

    def magnitude_kept(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> float | torch.Tensor:
        """The share of the sum of magnitudes that a cut and a random mask leave; NaN where the sum is not finite.

        On an accelerator a float64 tensor of no dimension that stays there.
        """
        if not self.count:
            return 1.0
        chunks = self._magnitudes(index, cut, density)
        before, after = folded(torch.nn.functional.pad(chunks, (0, power_of_two(chunks.shape[1]) - chunks.shape[1])))
        share = torch.where(before == 0, torch.ones_like(before), after / before)
        share = torch.where(before.isfinite(), share, torch.full_like(share, math.nan))
        return float(share) if share.device.type == "cpu" else share

    def _magnitudes(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> torch.Tensor:
        """Sums of magnitudes before and after a cut and a mask: float64, of shape ``(2, chunks)``."""
        sums: list[torch.Tensor] = []
        size = self._chunk_size
        for at in self._parts():
            task = self._task(index, at)
            both = task, self._left(task, index, cut, density, at.start)
            parts = [padded(values.abs_(), size).view(-1, size // BLOCK, BLOCK) for values in both]
            sums.append(torch.stack([magnitudes(part) for part in parts]))
        chunks = torch.cat(sums, 1)
        if cut is not None:
            self._split(chunks, index, cut, density)
        return chunks

    def _left(
        self,
        task: torch.Tensor,
        index: int,
        cut: Cut | DeviceCut | None,
        density: float | None,
        start: int | torch.Tensor,
    ) -> torch.Tensor:
        """What a cut and a mask leave of elements of a task vector from `start` on."""
        left = task.clone()
        if cut is not None:
            cut_(left, cut, start)
        if density is not None:
            drop_(left, self._keys[index], density, start)
        return left

    def _split(self, chunks: torch.Tensor, index: int, cut: Cut | DeviceCut, density: float | None) -> None:
        """Add the chunks in which a cut changes its rule up anew.

        Partial sums begin anew there: their order is that of the CPU's kernel.

        Args:
            chunks: sums of magnitudes, before and after: float64, of shape ``(2, chunks)``; changed in place.
            index, cut, density: as for `magnitude_kept`.
        """
        limits = cut.limits if isinstance(cut, DeviceCut) else self._numbers(*cut)
        splits = limits[1].minimum(limits[3]), limits[1].maximum(limits[3])
        lane = torch.arange(self._chunk_size, device=self._device)
        runs = torch.zeros((2, 2, len(lane) + 2 * BLOCK), device=self._device)
        changed = [(split // CHUNK).clamp_max(chunks.shape[1] - 1) for split in splits]
        for number, chunk in enumerate(changed):
            start = chunk * CHUNK
            target, taken = lane, torch.zeros_like(start)
            for end in splits:
                own = end - start
                gap = torch.where((own > 0) & (own < CHUNK), -(own + taken) % BLOCK, 0)
                target, taken = target + torch.where(lane >= own, gap, 0), taken + gap
            places, inside = self._chunk(chunk)
            task = self._gathered(index, places)
            for row, values in enumerate((task, self._left(task, index, cut, density, start))):
                runs[row, number].scatter_(0, target, torch.where(inside, values, 0.0))
        found = magnitudes(runs.abs_().view(4, -1, BLOCK)).view(2, 2)
        chunks.scatter_(1, torch.stack(changed).expand(2, 2), found)  # twice the same where both are of one chunk

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
