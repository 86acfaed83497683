"""Mixes in one pass over memory: blocks small enough that every intermediate stays in the first-level cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.compiling import add, both, compiled, either, multiply, shift_right, xor
from evomerge.merge.kernels.memory import (
    BF16,
    F16,
    F32,
    floats,
    halves,
    infinite_from,
    keep,
    prefetch,
    read,
    widened,
    width,
    words,
    write,
)
from evomerge.merge.masks import ROUNDS, WRAP

BLOCK = 512
"""Elements at a time; the result does not depend on it."""

_AHEAD = 4096  # bytes: how far ahead of its use memory is asked for

_U = np.uint32
_ROUNDS = tuple((np.uint32(shift), np.uint32(factor)) for shift, factor in ROUNDS)
(_SHIFT_1, _FACTOR_1), (_SHIFT_2, _FACTOR_2), (_SHIFT_3, _FACTOR_3) = _ROUNDS
_SHIFT_4, _WRAP = np.uint32(14), np.uint32(WRAP)


@compiled
def _keep(source: int, base: int, low: Any, high: Any, target: int, count: int) -> None:
    """What of the source, less the base where one is given, is neither below `low` nor above `high` in magnitude.

    Zero elsewhere; a NaN is kept.
    """
    values, kept = floats(source, count), floats(target, count)
    if base:
        origin = floats(base, count)
        for e in range(count):
            task = values[e] - origin[e]
            size = abs(task)
            kept[e] = np.float32(0) if (size < low) | (size > high) else task
    else:
        for e in range(count):
            size = abs(values[e])
            kept[e] = np.float32(0) if (size < low) | (size > high) else values[e]


@compiled
def _drop(source: int, key: Any, bound: Any, start: int, target: int, count: int) -> None:
    """Copy the elements whose random number (see `masks`) lies below `bound`, zero elsewhere."""
    values, kept = floats(source, count), floats(target, count)
    first = add(_U(start), _U(key))
    upper = add(_U(key >> np.uint64(32)), multiply(_U(start >> 32), _WRAP))
    for e in range(count):
        x = add(first, _U(e))
        x = multiply(xor(x, shift_right(x, _SHIFT_1)), _FACTOR_1)
        x = add(x, upper)
        x = multiply(xor(x, shift_right(x, _SHIFT_2)), _FACTOR_2)
        x = multiply(xor(x, shift_right(x, _SHIFT_3)), _FACTOR_3)
        x = xor(x, shift_right(x, _SHIFT_4))
        kept[e] = values[e] if shift_right(x, _U(1)) < bound else np.float32(0)


@compiled
def limits(cut: Any, start: int) -> Any:
    """The least and the largest magnitude that a cut keeps from `start` on, up to where either changes."""
    bits = np.empty(2, np.int32)
    bits[0] = cut[0] + (1 if start >= cut[1] else 0)
    bits[1] = cut[2] - (1 if start < cut[3] else 0)
    numbers = bits.view(np.float32)
    return numbers[0], (np.float32(-1) if bits[1] < 0 else numbers[1])


@compiled
def _minus(source: int, base: int, target: int, count: int) -> None:
    values, origin, result = floats(source, count), floats(base, count), floats(target, count)
    for e in range(count):
        result[e] = values[e] - origin[e]


@compiled
def _times(source: int, kind: int, weight: Any, target: int, count: int, more: bool) -> None:
    """Weight times the source, float32 or bfloat16; with `more`, added to the target."""
    values, half, total = floats(source, count), halves(source, count), floats(target, count)
    if kind == BF16:
        if more:
            for e in range(count):
                total[e] = total[e] + widened(half[e]) * weight
        else:
            for e in range(count):
                total[e] = widened(half[e]) * weight
    elif more:
        for e in range(count):
            total[e] = total[e] + values[e] * weight
    else:
        for e in range(count):
            total[e] = values[e] * weight


@compiled
def _times_difference(source: int, kind: int, base: int, weight: Any, target: int, count: int, more: bool) -> None:
    """Weight times the difference from the base of the source, float32 or bfloat16; with `more`, added."""
    values, half, total = floats(source, count), halves(source, count), floats(target, count)
    origin = floats(base, count)
    if kind == BF16:
        if more:
            for e in range(count):
                total[e] = total[e] + (widened(half[e]) - origin[e]) * weight
        else:
            for e in range(count):
                total[e] = (widened(half[e]) - origin[e]) * weight
    elif more:
        for e in range(count):
            total[e] = total[e] + (values[e] - origin[e]) * weight
    else:
        for e in range(count):
            total[e] = (values[e] - origin[e]) * weight


@compiled
def _times_elect(source: int, weight: Any, target: int, sum_: int, count: int, more: bool) -> None:
    """Weight times the source, kept and added to the sum that elects the sign."""
    values, part, elected = floats(source, count), floats(target, count), floats(sum_, count)
    if more:
        for e in range(count):
            part[e] = values[e] * weight
            elected[e] = elected[e] + part[e]
    else:
        for e in range(count):
            part[e] = values[e] * weight
            elected[e] = part[e]


@compiled
def _agreeing(source: int, sum_: int, target: int, count: int, more: bool) -> None:
    """Add the elements of the elected sign to the target; a NaN is of either."""
    part, elected, total = floats(source, count), floats(sum_, count), floats(target, count)
    for e in range(count):
        agrees = not (part[e] <= 0 if elected[e] >= 0 else part[e] >= 0)
        total[e] = (total[e] if more else np.float32(0)) + (part[e] if agrees else np.float32(0))


@compiled
def _voting(source: int, sum_: int, vote: Any, target: int, votes: int, count: int, more: bool) -> None:
    """Add the elements of the elected sign to the target, and their vote to the divisor."""
    part, elected = floats(source, count), floats(sum_, count)
    total, divisor = floats(target, count), floats(votes, count)
    if more:
        for e in range(count):
            agrees = not (part[e] <= 0 if elected[e] >= 0 else part[e] >= 0)
            total[e] = total[e] + (part[e] if agrees else np.float32(0))
            divisor[e] = divisor[e] + (vote if agrees else np.float32(0))
    else:
        for e in range(count):
            agrees = not (part[e] <= 0 if elected[e] >= 0 else part[e] >= 0)
            total[e] = np.float32(0) + (part[e] if agrees else np.float32(0))
            divisor[e] = vote if agrees else np.float32(0)


@compiled
def _finish(
    target: int, base: int, votes: int, least: Any, divisor: Any, scale: Any, peak: int, over: Any, count: int
) -> None:
    """Divide by the votes (where an address is given) or the divisor, scale, and add the base (where given).

    The highest bit of an element of `peak` is set when one that is stored from there is infinite: when adding `over`
    to the bits of its magnitude carries into that bit.
    """
    total, peaks, bits = floats(target, count), words(peak, count), words(target, count)
    if votes:
        by = floats(votes, count)
        for e in range(count):
            total[e] = total[e] / (np.float32(1) if abs(by[e]) <= least else by[e])
    elif divisor != 1:
        for e in range(count):
            total[e] = total[e] / divisor
    if base:
        origin = floats(base, count)
        if scale != 1:
            for e in range(count):
                total[e] = total[e] * scale
        for e in range(count):
            total[e] = total[e] + origin[e]
    elif scale != 1:
        for e in range(count):
            total[e] = total[e] * scale
    for e in range(count):
        peaks[e] = either(peaks[e], add(both(bits[e], _U(0x7FFFFFFF)), over))


@compiled
def _is_infinite(peak: int) -> int:
    """Whether `_finish` has seen a number that is stored as infinite, or a NaN."""
    seen = _U(0)
    for word in words(peak, BLOCK):
        seen |= word
    return np.int64(seen >> _U(31))


@compiled
def mix(
    inputs: Any,
    kinds: Any,
    base: int,
    base_kind: int,
    out: int,
    out_kind: int,
    begin: int,
    end: int,
    weights: Any,
    votes: Any,
    cuts: Any,
    keys: Any,
    bounds: Any,
    differences: bool,
    elect: bool,
    normalize: bool,
    least_vote: Any,
    divisor: Any,
    scale: Any,
    stream: bool,
) -> int:
    """Carry a mix out on elements `begin` to `end`; returns whether a result is not finite.

    Args:
        inputs, base, out: addresses, int64 of shape ``(inputs,)`` for the first.
        kinds, base_kind, out_kind: their dtype codes.
        weights, votes: float32, of shape ``(inputs,)``; weights are not zero.
        cuts: int64 of shape ``(inputs, 4)``: the fields of `mix.Cut`, with ``low`` -1 for none.
        keys, bounds: mask keys and what random numbers must lie below, -1 for no mask: uint64 and int64.
        differences, elect, normalize, divisor, scale: as in `mix.Mix`, the last two float32.
        least_vote: divisors up to it count as zero.
        stream: whether `out` is 32-byte aligned and worth writing past the cache.
    """
    count = inputs.shape[0]
    memory = np.zeros((count + 8) * BLOCK, np.float32)
    row = 4 * BLOCK
    total = (memory.ctypes.data + 63) // 64 * 64
    elected, divisors, converted = total + row, total + 2 * row, total + 3 * row
    task, origin_scratch, peak, parts = total + 4 * row, total + 5 * row, total + 6 * row, total + 7 * row
    over = _U(0x80000000 - infinite_from(out_kind))
    start = begin
    while start < end:
        size = min(BLOCK, end - start, 4294967296 - start % 4294967296)  # masks begin anew there
        for i in range(count):
            if cuts[i, 0] >= 0:  # on either side of where ties are cut the bounds differ
                for at in (cuts[i, 1], cuts[i, 3]):
                    if start < at < start + size:
                        size = at - start
        origin = 0
        if differences:
            origin = read(base, base_kind, start, size, origin_scratch)
            prefetch(base + start * width(base_kind) + _AHEAD, size * width(base_kind))
        for i in range(count):
            prefetch(inputs[i] + start * width(kinds[i]) + _AHEAD, size * width(kinds[i]))
            if not elect and cuts[i, 0] < 0 and bounds[i] < 0 and kinds[i] != F16:
                values = inputs[i] + start * width(kinds[i])
                if differences:
                    _times_difference(values, kinds[i], origin, weights[i], total, size, i > 0)
                else:
                    _times(values, kinds[i], weights[i], total, size, i > 0)
                continue
            values = read(inputs[i], kinds[i], start, size, converted)
            if cuts[i, 0] >= 0:
                low, high = limits(cuts[i], start)
                _keep(values, origin, low, high, task, size)
                values = task
            elif differences:
                _minus(values, origin, task, size)
                values = task
            if bounds[i] >= 0:
                _drop(values, keys[i], np.uint32(bounds[i]), start, converted, size)
                values = converted
            if elect:
                _times_elect(values, weights[i], parts + i * row, elected, size, i > 0)
            else:
                _times(values, F32, weights[i], total, size, i > 0)
        if elect:
            for i in range(count):
                if normalize:
                    _voting(parts + i * row, elected, votes[i], total, divisors, size, i > 0)
                else:
                    _agreeing(parts + i * row, elected, total, size, i > 0)
        votes_of = divisors if elect and normalize else 0
        _finish(total, origin, votes_of, least_vote, divisor, scale, peak, over, size)
        write(total, out, out_kind, start, size, stream and start % 16 == 0, converted)
        start += size
    return _is_infinite(peak) + keep(memory)
