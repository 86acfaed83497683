"""Mixes on GPUs in one pass: every source is read once, the result is written once, and nothing lies in between.

Written in Triton, which comes with CUDA builds of torch and is imported by nothing else. The operations and their order
are those of `lines.mix_lines`, so that the bits are the CPU's: products and sums are not contracted to fused ones (see
`OPTIONS`), division is correctly rounded, bfloat16 is rounded by whole numbers, and masks are made in words of 32 bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from evomerge.merge.kernels.triple32 import ROUNDS, WRAP

BLOCK = 1024
"""Elements of a program; the result does not depend on it."""

FEW = 3
"""Inputs: up to here the inverses of all sums of their votes are given, as a division takes as long as the rest."""

OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""What every launch is given: warps of a program, and that ``a * b + c`` is rounded twice, as on the CPU."""

_SHIFT_1, _SHIFT_2, _SHIFT_3, _SHIFT_4 = (tl.constexpr(shift) for shift in (*(shift for shift, _ in ROUNDS), 14))
_FACTOR_1, _FACTOR_2, _FACTOR_3 = (tl.constexpr(factor) for _, factor in ROUNDS)
_WRAP = tl.constexpr(WRAP)
_SIZE = tl.constexpr(0x7FFFFFFF)
_INFINITE = tl.constexpr(0x7F800000)
_UNIT = tl.constexpr(2.0**-31)


def setting(number: int) -> int:
    """A whole number below 2**60, or a negative word, as kernels take it.

    Triton compiles anew for arguments that are 1, multiples of 16 or beyond 32 bits: these are none of them or all.
    """
    return (number & 0xFFFFFFFF if number < 0 else number) << 1 | 1 | 1 << 62


@triton.jit
def _long(given):
    """What `setting` made of a number."""
    return (given >> 1) & ((1 << 60) - 1)


@triton.jit
def _word(given):
    """What `setting` made of a word, which may be negative: int32."""
    return (given >> 1).to(tl.int32)


@triton.jit
def _unsigned(given):
    """What `setting` made of an unsigned word."""
    return _word(given).to(tl.uint32, bitcast=True)


@triton.jit
def _magnitude(x):
    """The bits of a float32 without its sign: int32, which order like the magnitudes."""
    return x.to(tl.int32, bitcast=True) & _SIZE


@triton.jit
def _loaded(address, lane, inside, WHOLE: tl.constexpr):
    """Numbers as they are stored."""
    if WHOLE:
        return tl.load(address + lane)
    else:
        return tl.load(address + lane, mask=inside, other=0)


@triton.jit
def _floats(address, lane, inside, WHOLE: tl.constexpr):
    """Numbers as float32; those of int16 are the bits of bfloat16."""
    stored = _loaded(address, lane, inside, WHOLE)
    if address.dtype.element_ty == tl.int16:
        return (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def _cut(part, start, lane, low, low_end, high, high_start, BAND: tl.constexpr, BLOCK: tl.constexpr):
    """What a `mix.Cut` keeps, zero elsewhere; a NaN is kept. Without `BAND` none of the largest is cut off."""
    bits = _magnitude(part)
    first = tl.minimum(tl.maximum(low_end - start, 0), BLOCK).to(tl.int32)
    outside = bits < low + tl.where(lane >= first, 1, 0)
    if BAND:
        second = tl.minimum(tl.maximum(high_start - start, 0), BLOCK).to(tl.int32)
        most = high - tl.where(lane < second, 1, 0)
        outside = outside | ((bits > most) & (bits <= _INFINITE))
    return tl.where(outside, 0.0, part)


@triton.jit
def _numbers(start, lane, lower, upper):
    """The random numbers of elements from `start` (see `masks`): int32 below 2**31."""
    x = lane.to(tl.uint32) + (_unsigned(lower) + start.to(tl.uint32))
    x = (x ^ (x >> _SHIFT_1)) * _FACTOR_1
    x += _unsigned(upper) + (start >> 32).to(tl.uint32) * _WRAP
    x = (x ^ (x >> _SHIFT_2)) * _FACTOR_2
    x = (x ^ (x >> _SHIFT_3)) * _FACTOR_3
    x = x ^ (x >> _SHIFT_4)
    return (x >> 1).to(tl.int32)


@triton.jit
def _pruned(part, numbers, ranks, bounds, lane, inside, WHOLE: tl.constexpr, DIVIDE: tl.constexpr):
    """What has a number up to the bound of its rank, zero elsewhere; divided by the probability of staying."""
    rank = _loaded(ranks, lane, inside, WHOLE).to(tl.int32)
    if ranks.dtype.element_ty == tl.int16:
        rank = rank & 0xFFFF
    bound = tl.load(bounds + rank)
    part = tl.where(numbers <= bound, part, 0.0)
    if DIVIDE:
        part = tl.div_rn(part, tl.maximum((bound.to(tl.float32) + 1.0) * _UNIT, _UNIT))
    return part


@triton.jit
def _agreeing(part, total):
    """A part where its sign is that of the total, positive where that is zero; else zero. By bits, for NaN's sake."""
    bits = part.to(tl.int32, bitcast=True)
    sign = tl.where(total == 0.0, 0, total.to(tl.int32, bitcast=True))
    return (bits & ~((bits ^ sign) >> 31)).to(tl.float32, bitcast=True)


@triton.jit
def _inverse_of_two(first, second, inverses, AT: tl.constexpr):
    """One of four inverses from `AT` on, by who agrees."""
    without, with_it = inverses[AT], inverses[AT + 2]
    return tl.where(first, tl.where(second, inverses[AT + 3], with_it), tl.where(second, inverses[AT + 1], without))


@triton.jit
def _inverse(agree, votes, inverses, least, COUNT: tl.constexpr):
    """One over the votes of those that agree, or one where they are zero but for rounding."""
    if COUNT == 1:
        return tl.where(agree[0], inverses[1], inverses[0])
    elif COUNT == 2:
        return _inverse_of_two(agree[0], agree[1], inverses, 0)
    elif COUNT == 3:
        with_it = _inverse_of_two(agree[1], agree[2], inverses, 4)
        return tl.where(agree[0], with_it, _inverse_of_two(agree[1], agree[2], inverses, 0))
    else:
        divide = tl.where(agree[0], votes[0], 0.0)
        for i in tl.static_range(1, COUNT):
            divide = divide + tl.where(agree[i], votes[i], 0.0)
        return tl.div_rn(1.0, tl.where(tl.abs(divide) <= least, 1.0, divide))


@triton.jit
def _stored(address, lane, inside, total, bad, WHOLE: tl.constexpr):
    """Round and write; `bad` becomes 1 where a result is not finite."""
    bits = total.to(tl.uint32, bitcast=True)
    if address.dtype.element_ty == tl.int16:
        limit: tl.constexpr = 0x7F7F8000
        rounded = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).to(tl.int16)
    elif address.dtype.element_ty == tl.float16:
        limit: tl.constexpr = 0x477FF000
        rounded = total.to(tl.float16)
    else:
        limit: tl.constexpr = 0x7F800000
        rounded = total
    wrong = _magnitude(total) >= limit
    if WHOLE:
        tl.store(address + lane, rounded)
    else:
        wrong = wrong & inside
        tl.store(address + lane, rounded, mask=inside)
    tl.store(bad + lane * 0, 1, mask=wrong)


@triton.jit(do_not_specialize=["first", "begin", "end"])
def mix(
    out,
    bad,
    first,
    begin,
    end,
    inputs,
    base,
    weights,
    cuts,
    masks,
    votes,
    inverses,
    ranks,
    bounds,
    least,
    divisor,
    scale,
    COUNT: tl.constexpr,
    WEIGHTS_THERE: tl.constexpr,
    CUTS_THERE: tl.constexpr,
    BAND: tl.constexpr,
    DIVIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Carry a mix out on blocks of `BLOCK` elements.

    Whole numbers are given by `setting`. What is ``None`` is left out of the code.

    Args:
        out: where element `begin` goes; bfloat16 as int16, here and everywhere.
        bad: int32, set to 1 where a result is not finite.
        first: number of the first program's block.
        begin, end: elements of the tensor to mix; looked at only without `WHOLE`.
        inputs: the first elements of the whole tensors.
        base: likewise; ``None`` where terms are no differences.
        weights: float32, one for each input; or where they are.
        cuts: the four fields of a `mix.Cut` for each input; or where they are, int64.
        masks: the lower and the upper word of the key and the largest number that stays, for each input.
        votes: what agreeing elements add to the divisor, float32; ``None`` for no election of signs.
        inverses: one over the votes of every choice of inputs, the last one's bit the lowest; for up to `FEW` inputs.
        ranks: the rank of every element in its row for each input, int16 (as unsigned) or int32; or ``None``.
        bounds: for each input, the largest number that stays by rank, int32; ``None`` where `ranks` is.
        least: divisors up to it count as zero; ``None`` for a sum without a divisor.
        divisor: of the sum, or ``None``.
        scale: factor on the sum.
        COUNT: inputs.
        WEIGHTS_THERE, CUTS_THERE: whether these are tensors.
        BAND: whether a cut drops the largest magnitudes too.
        DIVIDE: whether what stays by rank is divided by its probability.
        WHOLE: whether all elements of the blocks are to be mixed, and `begin` is zero.
        BLOCK: elements of a program.
    """
    start = (_long(first) + tl.program_id(0)).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = (lane >= _long(begin) - start) & (lane < _long(end) - start)
    if base is not None:
        origin = _floats(base + start, lane, inside, WHOLE)
    parts = ()
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(COUNT):
        part = _floats(inputs[i] + start, lane, inside, WHOLE)
        if base is not None:
            part = part - origin
        if cuts is not None:
            if CUTS_THERE:
                low, high = tl.load(cuts + 4 * i).to(tl.int32), tl.load(cuts + 4 * i + 2).to(tl.int32)
                low_end, high_start = tl.load(cuts + 4 * i + 1), tl.load(cuts + 4 * i + 3)
            else:
                low, high = _word(cuts[4 * i]), _word(cuts[4 * i + 2])
                low_end, high_start = _long(cuts[4 * i + 1]), _long(cuts[4 * i + 3])
            part = _cut(part, start, lane, low, low_end, high, high_start, BAND, BLOCK)
        if masks is not None:
            numbers = _numbers(start, lane, masks[3 * i], masks[3 * i + 1])
            if ranks is not None:
                part = _pruned(part, numbers, ranks[i] + start, bounds[i], lane, inside, WHOLE, DIVIDE)
            else:
                part = tl.where(numbers <= _word(masks[3 * i + 2]), part, 0.0)
        part = part * tl.load(weights + i) if WEIGHTS_THERE else part * weights[i]
        total = part if i == 0 else total + part
        parts = parts + (part,)  # noqa: RUF005 - Triton knows no starred expressions
    if votes is not None:
        result = tl.zeros_like(total)
        agree = ()
        for i in tl.static_range(COUNT):
            agreeing = _agreeing(parts[i], total)
            result = result + agreeing
            agree = agree + (agreeing != 0.0,)  # noqa: RUF005
        if least is not None:
            result = result * _inverse(agree, votes, inverses, least, COUNT)
        total = result
    elif divisor is not None:
        total = tl.div_rn(total, divisor)
    total = total * scale
    if base is not None:
        total = total + origin
    if WHOLE:
        _stored(out + start, lane, inside, total, bad, WHOLE)
    else:
        _stored(out + (start - _long(begin)), lane, inside, total, bad, WHOLE)
