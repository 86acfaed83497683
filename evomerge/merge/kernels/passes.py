"""Passes over a block that stays in the first-level cache, for statistics. All take addresses.

Conditions never decide whether something is stored in place: processors are slow at storing parts of vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.memory import floats
from evomerge.merge.kernels.triple32 import ROUNDS, WRAP
from evomerge.merge.kernels.uint32_ops import add, multiply, shift_right, xor
from evomerge.utils.compiling import compiled

_U = np.uint32
_ZERO = np.float32(0)
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
def keep_between(source: int, low: Any, high: Any, target: int, count: int) -> None:
    """What of the source is neither below `low` nor above `high` in magnitude, zero elsewhere; a NaN is kept."""
    values, kept = floats(source, count), floats(target, count)
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
def drop(source: int, key: Any, bound: Any, start: int, target: int, count: int) -> None:
    """What of the source has a random number (see `masks`) below `bound`, zero elsewhere."""
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
        kept[e] = values[e] if shift_right(x, _U(1)) < bound else _ZERO
