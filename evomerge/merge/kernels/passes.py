"""The passes that mixes are made of, over a block that stays in the first-level cache.

All take addresses. As few as possible: what a block waits for is passes, not arithmetic. Conditions never decide
whether something is stored in place: processors are slow at storing parts of vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.compiling import add, both, compiled, either, multiply, shift_right, spread_right, xor
from evomerge.merge.kernels.memory import BF16, as_float, bits_of, floats, halves, widened, words
from evomerge.merge.masks import ROUNDS, WRAP

_U = np.uint32
_ZERO, _ONE = np.float32(0), np.float32(1)
_SIZE = np.uint32(0x7FFFFFFF)
_ROUNDS = tuple((np.uint32(shift), np.uint32(factor)) for shift, factor in ROUNDS)
(_SHIFT_1, _FACTOR_1), (_SHIFT_2, _FACTOR_2), (_SHIFT_3, _FACTOR_3) = _ROUNDS
_SHIFT_4, _WRAP = np.uint32(14), np.uint32(WRAP)


@compiled
def minus(source: int, base: int, target: int, count: int) -> None:
    """The source less the base."""
    values, origin, result = floats(source, count), floats(base, count), floats(target, count)
    for e in range(count):
        result[e] = values[e] - origin[e]


@compiled
def keep_between(source: int, base: int, low: Any, high: Any, target: int, count: int) -> None:
    """What of the source, less the base where one is given, is neither below `low` nor above `high` in magnitude.

    Zero elsewhere; a NaN is kept.
    """
    values, kept = floats(source, count), floats(target, count)
    if base:
        origin = floats(base, count)
        for e in range(count):
            task = values[e] - origin[e]
            size = abs(task)
            kept[e] = _ZERO if (size < low) | (size > high) else task
    else:
        for e in range(count):
            size = abs(values[e])
            kept[e] = _ZERO if (size < low) | (size > high) else values[e]


@compiled
def limits(cut: Any, start: int) -> Any:
    """The least and the largest magnitude that a cut keeps from `start` on, up to where either changes."""
    bits = np.empty(2, np.int32)
    bits[0] = cut[0] + (1 if start >= cut[1] else 0)
    bits[1] = cut[2] - (1 if start < cut[3] else 0)
    numbers = bits.view(np.float32)
    return numbers[0], (np.float32(-1) if bits[1] < 0 else numbers[1])


@compiled
def drop(source: int, base: int, key: Any, bound: Any, start: int, target: int, count: int) -> None:
    """What of the source, less the base where one is given, has a random number (see `masks`) below `bound`."""
    values, kept = floats(source, count), floats(target, count)
    first = add(_U(start), _U(key))
    upper = add(_U(key >> np.uint64(32)), multiply(_U(start >> 32), _WRAP))
    if base:
        origin = floats(base, count)
        for e in range(count):
            x = add(first, _U(e))
            x = multiply(xor(x, shift_right(x, _SHIFT_1)), _FACTOR_1)
            x = add(x, upper)
            x = multiply(xor(x, shift_right(x, _SHIFT_2)), _FACTOR_2)
            x = multiply(xor(x, shift_right(x, _SHIFT_3)), _FACTOR_3)
            x = xor(x, shift_right(x, _SHIFT_4))
            task = values[e] - origin[e]
            kept[e] = task if shift_right(x, _U(1)) < bound else _ZERO
    else:
        for e in range(count):
            x = add(first, _U(e))
            x = multiply(xor(x, shift_right(x, _SHIFT_1)), _FACTOR_1)
            x = add(x, upper)
            x = multiply(xor(x, shift_right(x, _SHIFT_2)), _FACTOR_2)
            x = multiply(xor(x, shift_right(x, _SHIFT_3)), _FACTOR_3)
            x = xor(x, shift_right(x, _SHIFT_4))
            kept[e] = values[e] if shift_right(x, _U(1)) < bound else _ZERO


@compiled
def times(source: int, kind: int, base: int, weight: Any, target: int, count: int, more: bool) -> None:
    """Weight times the source (float32 or bfloat16), less the base where one is given; with `more`, added."""
    values, half, total = floats(source, count), halves(source, count), floats(target, count)
    origin = floats(base, count)
    if kind == BF16:
        for e in range(count):
            task = widened(half[e]) - origin[e] if base else widened(half[e])
            total[e] = (total[e] + task * weight) if more else task * weight
    else:
        for e in range(count):
            task = values[e] - origin[e] if base else values[e]
            total[e] = (total[e] + task * weight) if more else task * weight


@compiled
def times_two(a: int, b: int, kind: int, base: int, weight_a: Any, weight_b: Any, target: int, count: int) -> None:
    """Two weighted sources of one dtype in one pass, in the order of two of `times`."""
    one, half_one, two, half_two = floats(a, count), halves(a, count), floats(b, count), halves(b, count)
    origin, total = floats(base, count), floats(target, count)
    if kind == BF16:
        for e in range(count):
            first = widened(half_one[e]) - origin[e] if base else widened(half_one[e])
            second = widened(half_two[e]) - origin[e] if base else widened(half_two[e])
            total[e] = first * weight_a + second * weight_b
    else:
        for e in range(count):
            first = one[e] - origin[e] if base else one[e]
            second = two[e] - origin[e] if base else two[e]
            total[e] = first * weight_a + second * weight_b


@compiled
def _agreeing(part: Any, elected: Any) -> Any:
    """The part where its sign is that of the sum, positive where that is zero; else zero.

    By bits, as conditions cost more. A NaN has the sign of the sum that it makes a NaN.
    """
    other = spread_right(xor(bits_of(part), bits_of(elected + _ZERO)), _U(31))  # adding zero makes -0 positive
    return as_float(both(bits_of(part), xor(other, _U(0xFFFFFFFF))))


@compiled
def _inverse(votes: Any, least: Any) -> Any:
    return _ONE / (_ONE if abs(votes) <= least else votes)


@compiled
def elect_two(a: int, b: int, weights: Any, votes: Any, normalize: bool, least: Any, target: int, count: int) -> None:
    """The sum of what agrees with the sign of the weighted sum; with `normalize`, divided by the votes for it."""
    one, two, total = floats(a, count), floats(b, count), floats(target, count)
    weight_a, weight_b, vote_a, vote_b = weights[0], weights[1], votes[0], votes[1]
    if normalize:
        of_a, of_b = _inverse(vote_a, least), _inverse(vote_b, least)
        of_both = _inverse(vote_a + vote_b, least)
        for e in range(count):
            first, second = one[e] * weight_a, two[e] * weight_b
            mine, other = _agreeing(first, first + second), _agreeing(second, first + second)
            with_a = of_both if other != _ZERO else of_a
            without = of_b if other != _ZERO else _ONE
            total[e] = ((_ZERO + mine) + other) * (with_a if mine != _ZERO else without)
    else:
        for e in range(count):
            first, second = one[e] * weight_a, two[e] * weight_b
            mine, other = _agreeing(first, first + second), _agreeing(second, first + second)
            total[e] = (_ZERO + mine) + other


@compiled
def elect_start(source: int, weight: Any, sum_: int, count: int, more: bool) -> None:
    """Weight the source in place, and add it to the sum that elects the sign."""
    part, elected = floats(source, count), floats(sum_, count)
    for e in range(count):
        weighted = part[e] * weight
        part[e] = weighted
        elected[e] = (elected[e] + weighted) if more else weighted


@compiled
def elect_more(source: int, sum_: int, vote: Any, target: int, votes: int, count: int, more: bool) -> None:
    """Add the elements of the elected sign to the target, and their vote to the divisor."""
    part, elected = floats(source, count), floats(sum_, count)
    total, divisor = floats(target, count), floats(votes, count)
    for e in range(count):
        agreeing = _agreeing(part[e], elected[e])
        total[e] = (total[e] if more else _ZERO) + agreeing
        divisor[e] = (divisor[e] if more else _ZERO) + (vote if agreeing != _ZERO else _ZERO)


@compiled
def divide(target: int, votes: int, least: Any, count: int) -> None:
    """Divide by the votes."""
    total, by = floats(target, count), floats(votes, count)
    for e in range(count):
        total[e] = total[e] * _inverse(by[e], least)


@compiled
def finish(target: int, base: int, divisor: Any, scale: Any, peak: int, over: Any, count: int) -> None:
    """Divide, scale, and add the base where one is given.

    The highest bit of an element of `peak` is set when one that is stored from there is infinite: when adding `over`
    to the bits of its magnitude carries into that bit.
    """
    total, origin, peaks = floats(target, count), floats(base, count), words(peak, count)
    if divisor != 1:
        for e in range(count):
            number = total[e] / divisor * scale
            number = number + origin[e] if base else number
            total[e] = number
            peaks[e] = either(peaks[e], add(both(bits_of(number), _SIZE), over))
    else:
        for e in range(count):
            number = total[e] * scale
            number = number + origin[e] if base else number
            total[e] = number
            peaks[e] = either(peaks[e], add(both(bits_of(number), _SIZE), over))


@compiled
def is_infinite(peak: int, count: int) -> int:
    """Whether `finish` has seen a number that is stored as infinite, or a NaN."""
    seen = _U(0)
    for word in words(peak, count):
        seen |= word
    return np.int64(seen >> _U(31))
