"""Mixes in one pass over memory: blocks small enough that every intermediate stays in the first-level cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.compiling import compiled
from evomerge.merge.kernels.memory import F16, F32, infinite_from, keep, prefetch, read, width, write
from evomerge.merge.kernels.passes import (
    divide,
    drop,
    elect_more,
    elect_start,
    elect_two,
    finish,
    is_infinite,
    keep_between,
    limits,
    times,
    times_two,
)

BLOCK = 512
"""Elements at a time; the result does not depend on it."""

_AHEAD = 4096  # bytes: how far ahead of its use memory is asked for
_U = np.uint32
_ONE = np.float32(1)


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
    plain = not elect
    for i in range(count):
        plain = plain and cuts[i, 0] < 0 and bounds[i] < 0 and kinds[i] != F16
    in_pairs = plain and count > 1 and kinds[0] == kinds[1]
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
        if plain:
            if in_pairs:
                one, two = inputs[0] + start * width(kinds[0]), inputs[1] + start * width(kinds[1])
                times_two(one, two, kinds[0], origin, weights[0], weights[1], total, size)
            for i in range(2 if in_pairs else 0, count):
                times(inputs[i] + start * width(kinds[i]), kinds[i], origin, weights[i], total, size, i > 0)
        else:
            for i in range(count):
                values, less, part = read(inputs[i], kinds[i], start, size, converted), origin, parts + i * row
                if cuts[i, 0] >= 0:
                    low, high = limits(cuts[i], start)
                    target = task if bounds[i] >= 0 else part
                    keep_between(values, less, low, high, target, size)
                    values, less = target, 0
                if bounds[i] >= 0:
                    drop(values, less, keys[i], np.uint32(bounds[i]), start, part, size)
                elif cuts[i, 0] < 0:
                    times(values, F32, less, _ONE, part, size, False)
            if elect and count == 2:
                elect_two(parts, parts + row, weights, votes, normalize, least_vote, total, size)
            elif elect:
                for i in range(count):
                    elect_start(parts + i * row, weights[i], elected, size, i > 0)
                for i in range(count):
                    elect_more(parts + i * row, elected, votes[i], total, divisors, size, i > 0)
                if normalize:
                    divide(total, divisors, least_vote, size)
            elif count > 1:
                times_two(parts, parts + row, F32, 0, weights[0], weights[1], total, size)
                for i in range(2, count):
                    times(parts + i * row, F32, 0, weights[i], total, size, True)
            else:
                times(parts, F32, 0, weights[0], total, size, False)
        finish(total, origin, divisor, scale, peak, over, size)
        write(total, out, out_kind, start, size, stream and start % 16 == 0, converted)
        start += size
    return is_infinite(peak, BLOCK) + keep(memory)
