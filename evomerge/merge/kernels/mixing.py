"""Mixes in one pass over memory: blocks small enough that every intermediate stays in the first-level cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.compiling import compiled
from evomerge.merge.kernels.memory import is_infinite, prefetch, read, width, write
from evomerge.merge.masks import ROUNDS, WRAP

BLOCK = 512
"""Elements at a time; the result does not depend on it."""

_AHEAD = 4096  # bytes: how far ahead of its use memory is asked for

_U = np.uint32
_ROUNDS = tuple((np.uint32(shift), np.uint32(factor)) for shift, factor in ROUNDS)
(_SHIFT_1, _FACTOR_1), (_SHIFT_2, _FACTOR_2), (_SHIFT_3, _FACTOR_3) = _ROUNDS
_SHIFT_4, _WRAP = np.uint32(14), np.uint32(WRAP)


@compiled
def _keep(values: Any, low: Any, high: Any, kept: Any, count: int) -> None:
    """Copy what is neither below `low` nor above `high` in magnitude (a NaN is kept), zero elsewhere."""
    for e in range(count):
        size = abs(values[e])
        kept[e] = np.float32(0) if (size < low) | (size > high) else values[e]


@compiled
def _drop(values: Any, key: Any, bound: Any, start: int, kept: Any, count: int) -> None:
    """Copy the elements whose random number (see `masks`) lies below `bound`, zero elsewhere."""
    # Every step is cut to 32 bits again: numba would widen it, and halve what a vector holds.
    first = _U(_U(start) + _U(key))
    upper = _U(_U(key >> np.uint64(32)) + _U(_U(start >> 32) * _WRAP))
    for e in range(count):
        x = _U(first + _U(e))
        x = _U(_U(x ^ _U(x >> _SHIFT_1)) * _FACTOR_1)
        x = _U(_U(x ^ _U(x >> _SHIFT_2)) * _FACTOR_2)
        x = _U(x + upper)
        x = _U(_U(x ^ _U(x >> _SHIFT_3)) * _FACTOR_3)
        x = _U(x ^ _U(x >> _SHIFT_4))
        kept[e] = values[e] if _U(x >> _U(1)) < bound else np.float32(0)


@compiled
def _minus(values: Any, base: Any, result: Any, count: int) -> None:
    for e in range(count):
        result[e] = values[e] - base[e]


@compiled
def _times(values: Any, weight: Any, total: Any, count: int) -> None:
    for e in range(count):
        total[e] = values[e] * weight


@compiled
def _plus(values: Any, weight: Any, total: Any, count: int) -> None:
    for e in range(count):
        total[e] = total[e] + values[e] * weight


@compiled
def _times_difference(values: Any, base: Any, weight: Any, total: Any, count: int) -> None:
    for e in range(count):
        total[e] = (values[e] - base[e]) * weight


@compiled
def _plus_difference(values: Any, base: Any, weight: Any, total: Any, count: int) -> None:
    for e in range(count):
        total[e] = total[e] + (values[e] - base[e]) * weight


@compiled
def _vote(part: Any, elected: Any, vote: Any, mean: Any, divisor: Any, count: int) -> None:
    """Add the elements of the elected sign to the sum, and their vote to the divisor."""
    for e in range(count):
        agrees = part[e] > 0 if elected[e] >= 0 else part[e] < 0
        mean[e] = mean[e] + (part[e] if agrees else np.float32(0))
        divisor[e] = divisor[e] + (vote if agrees else np.float32(0))


@compiled
def _add(values: Any, other: Any, count: int) -> None:
    for e in range(count):
        values[e] = values[e] + other[e]


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
    parts = np.empty((count, BLOCK), np.float32)
    scratch = np.empty((7, BLOCK), np.float32)
    peak = np.zeros(BLOCK, np.uint32)
    total, elected, votes_of, converted, first, second, origin_scratch = (
        scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5], scratch[6],
    )  # fmt: skip
    edge = np.empty(2, np.int32)
    edges = edge.view(np.float32)
    start = begin
    while start < end:
        size = min(BLOCK, end - start, 4294967296 - start % 4294967296)  # masks begin anew there
        for i in range(count):
            for at in (cuts[i, 1], cuts[i, 3]):  # on either side of where ties are cut the bounds differ
                if cuts[i, 0] >= 0 and start < at < start + size:
                    size = at - start
        origin = origin_scratch
        if differences:
            origin = read(base, base_kind, start, size, origin_scratch)
            prefetch(base + start * width(base_kind) + _AHEAD, size * width(base_kind))
        for i in range(count):
            values = read(inputs[i], kinds[i], start, size, converted)
            prefetch(inputs[i] + start * width(kinds[i]) + _AHEAD, size * width(kinds[i]))
            plain = cuts[i, 0] < 0 and bounds[i] < 0
            if plain and not elect:
                if differences and i == 0:
                    _times_difference(values, origin, weights[i], total, size)
                elif differences:
                    _plus_difference(values, origin, weights[i], total, size)
                elif i == 0:
                    _times(values, weights[i], total, size)
                else:
                    _plus(values, weights[i], total, size)
                continue
            if differences:
                _minus(values, origin, first, size)
                values = first
            if cuts[i, 0] >= 0:
                edge[0] = cuts[i, 0] + (1 if start >= cuts[i, 1] else 0)
                edge[1] = cuts[i, 2] - (1 if start < cuts[i, 3] else 0)
                _keep(values, edges[0], edges[1], second, size)
                values = second
            if bounds[i] >= 0:
                _drop(values, keys[i], np.uint32(bounds[i]), start, parts[i], size)
                values = parts[i]
            if not elect:
                if i == 0:
                    _times(values, weights[i], total, size)
                else:
                    _plus(values, weights[i], total, size)
                continue
            _times(values, weights[i], parts[i], size)
            if i == 0:
                elected[:size] = parts[i][:size]
            else:
                _add(elected, parts[i], size)
        if elect:
            total[:size] = 0
            votes_of[:size] = 0
            for i in range(count):
                _vote(parts[i], elected, votes[i], total, votes_of, size)
            if normalize:
                for e in range(size):
                    total[e] = total[e] / (np.float32(1) if abs(votes_of[e]) <= least_vote else votes_of[e])
        elif divisor != 1:
            for e in range(size):
                total[e] = total[e] / divisor
        if scale != 1:
            for e in range(size):
                total[e] = total[e] * scale
        if differences:
            _add(total, origin, size)
        write(total, out, out_kind, start, size, stream and start % 16 == 0, converted, peak)
        start += size
    return is_infinite(peak)
