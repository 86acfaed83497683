"""Sums over whole tensors whose bits do not depend on how many threads share the work.

Every chunk of `CHUNK` elements is added up by itself, in a fixed order; the caller adds the chunks exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from evomerge.merge.kernels.memory import floats, keep, pointer, prefetch, read, width
from evomerge.merge.kernels.mixing import BLOCK
from evomerge.merge.kernels.passes import drop, keep_between, limits, minus
from evomerge.utils.compiling import compiled

CHUNK = 1 << 16
"""Elements of a partial sum."""

GROUP = 16
"""Blocks whose products are added in float32 before they go into float64."""

_AHEAD = 4096


@compiled
def _doubles(address: int, count: int) -> Any:
    return carray(pointer(address), (count,), np.float64)


@compiled
def _product(a: int, b: int, target: int, count: int, more: bool) -> None:
    first, second, total = floats(a, count), floats(b, count), floats(target, count)
    if more:
        for e in range(count):
            total[e] = total[e] + first[e] * second[e]
    else:
        for e in range(count):
            total[e] = first[e] * second[e]


@compiled
def _flush(source: int, target: int, count: int) -> None:
    """Add float32 sums to float64 ones and set them to zero."""
    values, total = floats(source, count), _doubles(target, count)
    for e in range(count):
        total[e] = total[e] + np.float64(values[e])
        values[e] = np.float32(0)


@compiled
def _fold(address: int) -> Any:
    """The sum of a block of float64, halves first; sets them to zero."""
    values = _doubles(address, BLOCK)
    half = BLOCK // 2
    while half:
        for e in range(half):
            values[e] = values[e] + values[e + half]
        half //= 2
    total = values[0]
    for e in range(BLOCK):
        values[e] = 0.0
    return total


@compiled
def gram(inputs: Any, kinds: Any, base: int, base_kind: int, begin: int, end: int, result: Any) -> int:
    """Inner products of every pair of inputs, of their differences from the base where it has an address.

    Args:
        inputs, kinds, base, base_kind: addresses and dtype codes, as for `mixing.mix`.
        begin, end: elements; `begin` is a multiple of `CHUNK`.
        result: float64 of shape ``(chunks, pairs)``, pairs in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
    """
    count = inputs.shape[0]
    pairs = count * (count + 1) // 2
    row = 4 * BLOCK
    memory = np.zeros((2 * count + 3 * pairs + 3) * BLOCK, np.float32)
    origin_scratch = (memory.ctypes.data + 63) // 64 * 64
    tasks, converted = origin_scratch + row, origin_scratch + (1 + count) * row
    singles = converted + count * row
    sums = singles + pairs * row
    places = np.empty(count, np.int64)
    for chunk_start in range(begin, end, CHUNK):
        chunk_end = min(chunk_start + CHUNK, end)
        blocks = 0
        for start in range(chunk_start, chunk_end, BLOCK):
            size = min(BLOCK, chunk_end - start)
            origin = 0
            if base:
                origin = read(base, base_kind, start, size, origin_scratch)
                prefetch(base + start * width(base_kind) + _AHEAD, size * width(base_kind))
            for i in range(count):
                places[i] = read(inputs[i], kinds[i], start, size, converted + i * row)
                prefetch(inputs[i] + start * width(kinds[i]) + _AHEAD, size * width(kinds[i]))
                if base:
                    minus(places[i], origin, tasks + i * row, size)
                    places[i] = tasks + i * row
            pair = 0
            for i in range(count):
                for j in range(i + 1):
                    _product(places[i], places[j], singles + pair * row, size, True)
                    pair += 1
            blocks += 1
            if blocks == GROUP or start + size == chunk_end:
                for p in range(pairs):
                    _flush(singles + p * row, sums + 2 * p * row, BLOCK)
                blocks = 0
        for p in range(pairs):
            result[chunk_start // CHUNK, p] = _fold(sums + 2 * p * row)
    return keep(memory)


@compiled
def _magnitudes(source: int, target: int, count: int) -> None:
    values, total = floats(source, count), _doubles(target, count)
    for e in range(count):
        total[e] = total[e] + abs(np.float64(values[e]))


@compiled
def magnitudes(
    address: int,
    kind: int,
    base: int,
    base_kind: int,
    begin: int,
    end: int,
    cut: Any,
    key: Any,
    bound: int,
    result: Any,
) -> int:
    """Sums of the magnitudes of a task vector, before and after a cut and a mask.

    Args:
        address, kind, base, base_kind: the input and the base.
        begin, end: elements; `begin` is a multiple of `CHUNK`.
        cut, key, bound: the fields of `mix.Cut`, with ``low`` -1 for none, int64 of shape ``(4,)``; uint64; what random
            numbers must lie below, -1 for no mask.
        result: float64 of shape ``(chunks, 2)``.
    """
    row = 4 * BLOCK
    memory = np.zeros(10 * BLOCK, np.float32)
    first = (memory.ctypes.data + 63) // 64 * 64
    second, third, whole, kept = first + row, first + 2 * row, first + 3 * row, first + 5 * row
    for chunk_start in range(begin, end, CHUNK):
        chunk_end = min(chunk_start + CHUNK, end)
        start = chunk_start
        while start < chunk_end:
            size = min(BLOCK, chunk_end - start)
            if cut[0] >= 0:
                for at in (cut[1], cut[3]):
                    if start < at < start + size:
                        size = at - start
            origin = read(base, base_kind, start, size, first)
            values = read(address, kind, start, size, second)
            minus(values, origin, third, size)
            _magnitudes(third, whole, size)
            values = third
            if cut[0] >= 0:
                low, high = limits(cut, start)
                keep_between(third, low, high, first, size)
                values = first
            if bound >= 0:
                drop(values, key, np.uint32(bound), start, second, size)
                values = second
            _magnitudes(values, kept, size)
            start += size
        result[chunk_start // CHUNK, 0] = _fold(whole)
        result[chunk_start // CHUNK, 1] = _fold(kept)
    return keep(memory)
