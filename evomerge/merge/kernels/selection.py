"""Finding the magnitude of a given rank in a task vector without sorting it: a histogram, then one look at one bin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from evomerge.merge.kernels.memory import halves, keep, pointer, prefetch, read, width, words
from evomerge.merge.kernels.mixing import BLOCK
from evomerge.merge.kernels.passes import minus
from evomerge.merge.kernels.uint32_ops import both, shift_right
from evomerge.utils.compiling import compiled

SHIFT = 17
"""Bits of a float32 below those that choose its bin: 64 bins from one power of two to the next."""

BINS = 1 << (31 - SHIFT)

_AHEAD = 4096
_U = np.uint32


@compiled
def histogram(address: int, kind: int, base: int, base_kind: int, begin: int, end: int, bins: Any) -> int:
    """Count the magnitudes of a task vector's elements `begin` to `end` by their highest bits.

    `bins` is uint32 of shape ``(4, BINS)``, added to: neighbours are counted apart, so that none waits for another.
    """
    row = 4 * BLOCK
    memory = np.zeros(5 * BLOCK, np.float32)
    first = (memory.ctypes.data + 63) // 64 * 64
    second, third = first + row, first + 2 * row
    for start in range(begin, end, BLOCK):
        size = min(BLOCK, end - start)
        prefetch(base + start * width(base_kind) + _AHEAD, size * width(base_kind))
        prefetch(address + start * width(kind) + _AHEAD, size * width(kind))
        minus(read(address, kind, start, size, second), read(base, base_kind, start, size, first), third, size)
        bits = words(third, size)
        for e in range(size):
            bits[e] = shift_right(both(bits[e], _U(0x7FFFFFFF)), _U(SHIFT))
        for e in range(size // 4):
            bins[0, bits[4 * e]] += _U(1)
            bins[1, bits[4 * e + 1]] += _U(1)
            bins[2, bits[4 * e + 2]] += _U(1)
            bins[3, bits[4 * e + 3]] += _U(1)
        for e in range(size // 4 * 4, size):
            bins[0, bits[e]] += _U(1)
    return keep(memory)


@compiled
def _flag(task: int, bin_: Any, target: int, count: int) -> None:
    """One half word per element: 1 for those of the bin."""
    bits, flags = words(task, count), halves(target, count)
    for e in range(count):
        flags[e] = np.uint16(1) if shift_right(both(bits[e], _U(0x7FFFFFFF)), _U(SHIFT)) == bin_ else np.uint16(0)


@compiled
def gather(
    address: int, kind: int, base: int, base_kind: int, begin: int, end: int, bin_: int, found: Any, places: Any
) -> int:
    """The magnitude bits and indexes of a task vector's elements in a bin, in order; returns how many there are.

    `found` (uint32) and `places` (int64) have room for all of them.
    """
    row = 4 * BLOCK
    memory = np.zeros(6 * BLOCK, np.float32)
    first = (memory.ctypes.data + 63) // 64 * 64
    second, third, flags = first + row, first + 2 * row, first + 3 * row
    many = np.zeros(1, np.int64)
    word = _U(bin_)
    for start in range(begin, end, BLOCK):
        size = min(BLOCK, end - start)
        prefetch(base + start * width(base_kind) + _AHEAD, size * width(base_kind))
        prefetch(address + start * width(kind) + _AHEAD, size * width(kind))
        minus(read(address, kind, start, size, second), read(base, base_kind, start, size, first), third, size)
        _flag(third, word, flags, size)
        bits = words(third, size)
        four = carray(pointer(flags), ((size + 3) // 4,), np.uint64)
        for group in range((size + 3) // 4):
            if four[group]:
                for e in range(4 * group, min(4 * group + 4, size)):
                    if shift_right(both(bits[e], _U(0x7FFFFFFF)), _U(SHIFT)) == word:
                        found[many[0]] = both(bits[e], _U(0x7FFFFFFF))
                        places[many[0]] = start + e
                        many[0] += 1
    return many[0] + keep(memory)


@compiled
def magnitude_bits(address: int, kind: int, base: int, base_kind: int, element: int) -> int:
    """The bits of the magnitude of one element of a task vector."""
    memory = np.zeros(16, np.float32)
    first = np.int64(memory.ctypes.data)
    minus(read(address, kind, element, 1, first), read(base, base_kind, element, 1, first + 16), first + 32, 1)
    return np.int64(words(first + 32, 1)[0] & _U(0x7FFFFFFF)) + keep(memory)


@compiled
def order(address: int, kind: int, base: int, base_kind: int, count: int, result: Any) -> int:
    """The indexes of a task vector's elements by falling magnitude, of equals the first ones first.

    A radix sort by 11, 10 and 10 bits. `result` is uint32 of shape ``(count,)``.
    """
    row = 4 * BLOCK
    memory = np.zeros(4 * BLOCK, np.float32)
    first = (memory.ctypes.data + 63) // 64 * 64
    second, third = first + row, first + 2 * row
    bits = np.empty(count, np.uint32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        minus(read(address, kind, start, size, second), read(base, base_kind, start, size, first), third, size)
        task = words(third, size)
        for e in range(size):
            bits[start + e] = _U(0x7FFFFFFF) - both(task[e], _U(0x7FFFFFFF))
    other_bits, other = np.empty(count, np.uint32), np.empty(count, np.uint32)
    for e in range(count):
        result[e] = e
    source_bits, source, target_bits, target = bits, result, other_bits, other
    for shift in (0, 11, 21):
        digits = 11 if shift == 0 else 10
        mask = _U((1 << digits) - 1)
        starts = np.zeros((1 << digits) + 1, np.int64)
        for e in range(count):
            starts[np.int64(both(shift_right(source_bits[e], _U(shift)), mask)) + 1] += 1
        for digit in range(1 << digits):
            starts[digit + 1] += starts[digit]
        for e in range(count):
            digit = np.int64(both(shift_right(source_bits[e], _U(shift)), mask))
            place = starts[digit]
            target_bits[place] = source_bits[e]
            target[place] = source[e]
            starts[digit] = place + 1
        source_bits, source, target_bits, target = target_bits, target, source_bits, source
    for e in range(count):  # three passes end in the other array
        result[e] = source[e]
    return keep(memory)
