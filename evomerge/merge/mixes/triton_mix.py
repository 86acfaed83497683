"""Mixes on GPUs: launches of the kernels that Triton compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.kernels.triton_mixing import BLOCK, FEW, OPTIONS, setting
from evomerge.merge.kernels.triton_mixing import mix as mix_kernel
from evomerge.merge.mixes.cpu_mix import cut_row, mask_last
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, Mix, Term
from evomerge.merge.mixes.torch_mix import least_vote, mix_block, vote_of


def mix_(
    out: torch.Tensor,
    mix: Mix,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    keys: Sequence[int],
    begin: int = 0,
) -> torch.Tensor:
    """Carry a mix out into `out`, rounded once: bit for bit what `cpu_mix.mix_` makes of the same numbers.

    Args:
        out: flat, contiguous, of a merged dtype: the tensor, or its elements from `begin` on.
        inputs, base: the whole tensors, contiguous, of any merged dtypes, on the device of `out`.
        keys: mask keys of the inputs, where terms have a density or a pruning.
        begin: where in the tensor `out` begins.

    Returns:
        Whether every element is finite: bool, of no dimension and on the device, so that nobody need wait for it.
    """
    origin = base if mix.differences else None
    used = [i for i, term in enumerate(mix.terms) if term.is_used]
    end = begin + out.numel()
    if not used or begin == end:
        if origin is not None:
            out.copy_(origin[begin:end])
        else:
            out.zero_()
        return torch.isfinite(out).all()
    bad = torch.zeros((), dtype=torch.int32, device=out.device)
    settings = _settings(mix, used, inputs, origin, keys)
    whole = 0 if begin else end // BLOCK
    first = whole or begin // BLOCK  # of the blocks that are not mixed whole
    with on_device_of(out):
        for programs, at, all_of_them in ((whole, 0, True), (-(-end // BLOCK) - first, first, False)):
            if programs:
                places = setting(at), setting(begin), setting(end)
                mix_kernel[(programs,)](stored_bits(out), bad, *places, *settings, all_of_them, BLOCK, **OPTIONS)
    return bad == 0


def _settings(
    mix: Mix, used: Sequence[int], inputs: Sequence[torch.Tensor], base: torch.Tensor | None, keys: Sequence[int]
) -> tuple[Any, ...]:
    """Arguments of the kernel from `inputs` to `DIVIDE`."""
    device = inputs[used[0]].device
    terms = [mix.terms[i] for i in used]
    votes = [float(vote_of(term)) for term in terms] if mix.elect else None
    least = least_vote(votes) if votes and mix.normalize else None
    prunings = [term.pruning for term in terms if term.pruning is not None]
    assert len(prunings) in (0, len(terms)), "all inputs are pruned by rank or none is"
    weights: Any = tuple(term.weight for term in terms)
    if any(isinstance(weight, torch.Tensor) for weight in weights):
        weights = torch.stack([_there(weight, torch.float32, device) for weight in weights])
    else:
        weights = tuple(map(float, weights))
    cuts: Any = None
    masks = None
    if any(isinstance(term.cut, DeviceCut) for term in terms):
        cuts = torch.stack([limits_of(term.cut, device) for term in terms])
    elif any(term.cut for term in terms):
        cuts = tuple(setting(number) for term in terms for number in cut_row(term.cut))
    if prunings or any(term.density is not None for term in terms):
        rows = ((keys[i] & 0xFFFFFFFF, keys[i] >> 32, mask_last(mix.terms[i].density)) for i in used)
        masks = tuple(setting(number) for row in rows for number in row)
    return (
        tuple(stored_bits(inputs[i]) for i in used),
        stored_bits(base) if base is not None else None,
        weights,
        cuts,
        masks,
        tuple(votes) if votes else None,
        _inverses(votes, least) if votes and least is not None and len(votes) <= FEW else None,
        tuple(pruning.ranks for pruning in prunings) or None,
        tuple(pruning.bounds for pruning in prunings) or None,
        least,
        float(mix.divisor) if not mix.elect and mix.divisor != 1 else None,
        float(mix.scale),
        len(used),
        isinstance(weights, torch.Tensor),
        isinstance(cuts, torch.Tensor),
        any(has_band(term.cut) for term in terms),
        bool(prunings) and prunings[0].by_probability,
    )


def _inverses(votes: Sequence[float], least: float) -> tuple[float, ...]:
    """One over the votes of every choice of inputs, in float32 like all that the kernel computes."""
    sums = np.zeros(1, np.float32)
    for vote in votes:
        sums = np.stack([sums, sums + np.float32(vote)], 1).reshape(-1)
    return tuple((np.float32(1) / np.where(abs(sums) <= np.float32(least), np.float32(1), sums)).tolist())


def stored_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as the kernels take it: bfloat16 as whole numbers."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whichever the tensors are on: here on that of a tensor."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _there(number: float | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A number as a tensor on the device, without a copy that the host would wait for."""
    return number.to(dtype) if isinstance(number, torch.Tensor) else torch.full((), number, dtype=dtype, device=device)


def limits_of(cut: Cut | DeviceCut | None, device: torch.device) -> torch.Tensor:
    """A cut as the kernel takes it where only the device knows one of them: int64, of shape ``(4,)``."""
    if isinstance(cut, DeviceCut):
        return cut.limits
    return torch.stack([_there(number, torch.int64, device) for number in cut_row(cut)])


def has_band(cut: Cut | DeviceCut | None) -> bool:
    """Whether a cut may drop the largest."""
    return cut.has_band if isinstance(cut, DeviceCut) else cut is not None and cut.high != LARGEST


def agrees_with_torch(device: torch.device) -> bool:
    """Whether small examples have, on a device, the bits that torch operations give them; waits for the device."""
    count = 2 * BLOCK + 77
    numbers = torch.arange(3 * count, dtype=torch.int32, device=device).mul_(-1640531527).bitwise_right_shift_(8)
    tensors = [part.float().mul_(2.0**-23) for part in numbers.split(count)]
    for tensor in tensors:
        tensor[-200:] *= 2.0**-126  # subnormal: divisions of Triton before 3.6 take these for zero
    terms = Term(0.3, Cut(0x3E800000, count, 0x3F400000, 0), 0.7, vote=0.5), Term(-1.7, density=0.4, vote=0.25)
    keys = 2**63 + 12345, 7
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        base, *inputs = (tensor.to(dtype) for tensor in tensors)
        for mix in (Mix(terms, True, True, True, scale=1 / 3), Mix(terms, divisor=0.7)):
            below = base if mix.differences else None
            out = torch.empty(count, dtype=dtype, device=device)
            expected = mix_block(mix, inputs, below, keys, 0).to(dtype)
            if not mix_(out, mix, inputs, below, keys) or not torch.equal(out, expected):
                return False
    return True
