"""Mixes by torch operations: what accelerators run without Triton, and what all kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from evomerge.merge.mixes.masks import drop_, drop_each_, restore_
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, Mix, Pruning, Term


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
    used = [i for i, term in enumerate(mix.terms) if term.is_used]
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
        if term.pruning is not None:
            prune_(part, term.pruning, keys[i], offset)
        weight = term.weight
        parts.append(part.mul_(weight.float() if isinstance(weight, torch.Tensor) else weight))
    total = parts[0].clone() if mix.elect else parts[0]
    for part in parts[1:]:
        total.add_(part)
    if mix.elect:
        total = _agreeing(mix, used, parts, total)
    elif mix.divisor != 1:
        # By a tensor: devices multiply by the reciprocal of a number, which rounds twice.
        total.div_(torch.full((), mix.divisor, dtype=torch.float32, device=total.device))
    if mix.scale != 1:
        total.mul_(mix.scale)
    return total.add_(origin) if origin is not None else total


def prune_(task: torch.Tensor, pruning: Pruning, key: int, offset: int) -> None:
    """Set the elements of a flat float32 block that a pruning drops to zero, and divide the others, in place."""
    ranks = pruning.ranks[offset : offset + task.numel()].long()
    if pruning.ranks.dtype == torch.int16:
        ranks.bitwise_and_(0xFFFF)
    bounds = pruning.bounds[ranks]
    drop_each_(task, key, bounds, offset)
    if pruning.by_probability:
        restore_(task, bounds)


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
    vote = term.weight if term.vote is None else term.vote
    assert not isinstance(vote, torch.Tensor), "who gives a tensor as weight says what it counts"
    return vote


def least_vote(votes: Sequence[float]) -> float:
    """Divisors up to this are zero but for rounding, as float32."""
    return float(np.float32(1e-6 * math.fsum(abs(vote) for vote in votes)))


def cut_(task: torch.Tensor, cut: Cut | DeviceCut, offset: int | torch.Tensor) -> None:
    """Set the elements of a flat float32 block that a cut drops to zero, in place.

    Args:
        task: float32; elements `offset` and following of a tensor.
        cut: which of that tensor's stay.
        offset: where the block begins; int64 of no dimension where only the device knows it.
    """
    bits = task.view(torch.int32).bitwise_and(0x7FFFFFFF)
    if isinstance(cut, DeviceCut) or isinstance(offset, torch.Tensor):
        task.masked_fill_(_outside(bits, cut, offset), 0.0)
        return
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


def _outside(bits: torch.Tensor, cut: Cut | DeviceCut, offset: int | torch.Tensor) -> torch.Tensor:
    """What a cut drops of a block of magnitude bits, where the host does not know both."""
    lane = torch.arange(len(bits), dtype=torch.int32, device=bits.device)
    if isinstance(cut, DeviceCut):
        low, low_end, high, high_start = cut.limits.unbind()
        low, high, has_band = low.int(), high.int(), cut.has_band
    else:
        low, low_end, high, high_start = (torch.full((), n, device=bits.device) for n in cut)
        low, high, has_band = low.int(), high.int(), cut.high < LARGEST
    dropped = bits < low + (lane >= (low_end - offset).clamp(0, len(bits)).int()).int()
    if has_band:
        dropped |= bits > high - (lane < (high_start - offset).clamp(0, len(bits)).int()).int()
    return dropped
