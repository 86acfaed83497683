"""Mixes and statistics by torch operations: what accelerators run, and what the CPU's kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.mixes.masks import drop_
from evomerge.merge.mixes.mix import LARGEST, Cut, Mix, Term, cut_between


def mix_block(
    mix: Mix, inputs: Sequence[torch.Tensor], base: torch.Tensor | None, keys: Sequence[int], offset: int
) -> torch.Tensor:
    """The mix of a flat block as a new float32 tensor.

    Args:
        inputs, base: flat blocks of any merged dtype; not written to. Inputs of weight zero are not looked at.
        keys: mask keys of the inputs, where terms have a density.
        offset: index of the block's first element in its tensor.
    """
    origin = base.float() if base is not None and mix.differences else None
    like = origin if origin is not None else inputs[0]
    used = [i for i, term in enumerate(mix.terms) if term.weight != 0]
    if not used:
        return origin.clone() if origin is not None else torch.zeros_like(like, dtype=torch.float32)
    parts = []
    for i in used:
        term, part = mix.terms[i], inputs[i].float()
        part = part - origin if origin is not None else part.clone() if part is inputs[i] else part
        if term.cut is not None:
            cut_(part, term.cut, offset)
        if term.density is not None:
            drop_(part, keys[i], term.density, offset)
        parts.append(part.mul_(term.weight))
    total = parts[0].clone() if mix.elect else parts[0]
    for part in parts[1:]:
        total.add_(part)
    if mix.elect:
        total = _agreeing(mix, used, parts, total)
    elif mix.divisor != 1:
        total.div_(mix.divisor)
    if mix.scale != 1:
        total.mul_(mix.scale)
    return total.add_(origin) if origin is not None else total


def _agreeing(mix: Mix, used: Sequence[int], parts: Sequence[torch.Tensor], total: torch.Tensor) -> torch.Tensor:
    """The sum, or mean, of the parts whose sign is that of their total."""
    positive = total >= 0
    mean, divisor = torch.zeros_like(total), torch.zeros_like(total)
    votes = [vote_of(mix.terms[i]) for i in used]
    for part, vote in zip(parts, votes, strict=True):
        # A NaN agrees with either sign: it is found in the result.
        agrees = torch.where(positive, part <= 0, part >= 0).logical_not_()
        mean.add_(torch.where(agrees, part, 0.0))
        if mix.normalize:
            divisor.add_(torch.where(agrees, vote, 0.0))
    # Votes of both signs can cancel; what is left of them is rounding, not a divisor.
    if not mix.normalize:
        return mean
    return mean.mul_(divisor.masked_fill_(divisor.abs() <= least_vote(votes), 1.0).reciprocal_())


def vote_of(term: Term) -> float:
    """What an agreeing element of a term adds to the divisor."""
    return term.weight if term.vote is None else term.vote


def least_vote(votes: Sequence[float]) -> float:
    """Divisors up to this are zero but for rounding, as float32."""
    return float(np.float32(1e-6 * math.fsum(abs(vote) for vote in votes)))


def cut_(task: torch.Tensor, cut: Cut, offset: int) -> None:
    """Set the elements of a flat float32 block that a cut drops to zero, in place."""
    bits = task.view(torch.int32).bitwise_and(0x7FFFFFFF)
    dropped = bits < cut.low
    if cut.high < LARGEST:  # else infinities and NaN stay, to be found in the result
        dropped |= bits > cut.high
    if cut.low_end < offset + task.numel():
        at = max(0, cut.low_end - offset)
        dropped[at:] |= bits[at:] == cut.low
    if cut.high_start > offset:
        at = cut.high_start - offset
        dropped[:at] |= bits[:at] == cut.high
    task.masked_fill_(dropped, 0.0)


class TensorStatistics:
    """`mix.Statistics` of flat tensors on any device, computed when asked.

    Args:
        inputs, base: flat tensors of any merged dtype.
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

    def _task(self, index: int) -> torch.Tensor:
        assert self._base is not None, "methods that need a base declare it"
        return self._inputs[index].float() - self._base.float()

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors, added up in float64."""
        flat = [self._task(i) if differences else x.float() for i, x in enumerate(self._inputs)]
        products = np.zeros((len(flat), len(flat)))
        for i, a in enumerate(flat):
            for j, b in enumerate(flat[: i + 1]):
                products[i, j] = products[j, i] = float((a.double() * b.double()).sum())
        return products

    def cut(self, index: int, first: int, last: int) -> Cut | None:
        """The cut that keeps the ranks from `first` to `last`; ``None`` where that is all but zeros."""
        bits = self._task(index).view(torch.int32).bitwise_and_(0x7FFFFFFF)
        ordered = torch.sort(bits).values

        def at(rank: int) -> tuple[int, int]:
            """The magnitude bits of a rank, and one more than the index of its element."""
            value = int(ordered[self.count - 1 - rank])
            equal = torch.nonzero(bits == value).view(-1)
            return value, int(equal[rank - int(torch.count_nonzero(bits > value))]) + 1

        return cut_between(first, last, self.count, at)

    def magnitude_kept(self, index: int, cut: Cut | None, density: float | None) -> float:
        """The share of the sum of magnitudes that a cut and a random mask leave."""
        task = self._task(index)
        whole = float(task.abs().sum(dtype=torch.float64))
        if not math.isfinite(whole):
            return math.nan
        if cut is not None:
            cut_(task, cut, 0)
        if density is not None:
            drop_(task, self._keys[index], density, 0)
        return float(task.abs().sum(dtype=torch.float64)) / whole if whole else 1.0
