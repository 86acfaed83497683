"""What all kernels read and write with: memory at an address, in any merged dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from evomerge.merge.kernels.uint32_ops import add, both, either, shift_right
from evomerge.utils.compiling import compiled

F32, BF16, F16 = 0, 1, 2
"""Codes of the merged dtypes."""

_LINE = 64  # bytes
_U = np.uint32
_EXPONENT = np.uint32(0x7F800000)
_SIZE = np.uint32(0x7FFFFFFF)
_LESS_EXPONENT = np.uint32(2**32 - (112 << 10))
_F16_SCALE = np.float32(2.0**112)
_F16_LEAST = np.float32(2.0**-14)
_F16_SMALL = np.float32(0.5)


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An integer as a pointer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), build


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        builder.call(function, [builder.inttoptr(arguments[0], byte), word(0), word(0), word(1)])
        return context.get_dummy_value()

    return types.void(address), build


@compiled
def floats(address: int, count: int) -> Any:
    """Memory as float32. Views by address cost nothing, where those of arrays are counted."""
    return carray(pointer(address), (count,), np.float32)


@compiled
def words(address: int, count: int) -> Any:
    """Memory as uint32."""
    return carray(pointer(address), (count,), np.uint32)


@compiled
def halves(address: int, count: int) -> Any:
    """Memory as uint16."""
    return carray(pointer(address), (count,), np.uint16)


@compiled
def keep(memory: Any) -> int:
    """Zero, and a use of scratch memory, to be its last: an address alone keeps no array from being freed."""
    return 0


@compiled
def prefetch(address: int, count: int) -> None:
    """Ask for `count` bytes from an address."""
    for byte in range(0, count, _LINE):
        _prefetch(address + byte)


@compiled
def width(kind: int) -> int:
    """Bytes of an element of a dtype code."""
    return 4 if kind == F32 else 2


@compiled
def read(address: int, kind: int, start: int, count: int, scratch: int) -> int:
    """Elements from `start` as float32: the address itself where they are float32, else `scratch`, filled."""
    if kind == F32:
        return address + 4 * start
    half, bits = halves(address + 2 * start, count), words(scratch, count)
    if kind == BF16:
        for e in range(count):
            bits[e] = np.uint32(half[e]) << _U(16)
        return scratch
    values = floats(scratch, count)
    for e in range(count):
        # The exponent is rebased by a product, which is exact also for subnormals.
        bits[e] = np.uint32(half[e] & np.uint16(0x7FFF)) << _U(13)
    for e in range(count):
        values[e] = values[e] * _F16_SCALE
    for e in range(count):
        word = np.uint32(half[e])
        exponent = _EXPONENT if both(word, _U(0x7C00)) == _U(0x7C00) else _U(0)
        bits[e] = either(bits[e], either(both(word, _U(0x8000)) << _U(16), exponent))
    return scratch


@compiled
def infinite_from(kind: int) -> int:
    """The least float32 magnitude, as bits, that is infinite when rounded to a dtype."""
    if kind == F32:
        return 0x7F800000
    return 0x7F7F8000 if kind == BF16 else 0x477FF000


@compiled
def write(source: int, address: int, kind: int, start: int, count: int) -> None:
    """Round float32 numbers to the target's dtype and store them.

    Args:
        source: address of the numbers.
        address, kind, start: of the target.
        count: elements.
    """
    bits = words(source, count)
    if kind == F32:
        target = words(address + 4 * start, count)
        for e in range(count):
            target[e] = bits[e]
        return
    half = halves(address + 2 * start, count)
    if kind == BF16:
        for e in range(count):
            word = bits[e]
            even = both(shift_right(word, _U(16)), _U(1))
            half[e] = np.uint16(shift_right(add(word, add(_U(0x7FFF), even)), _U(16)))
    else:
        _to_float16(source, half, count)


@compiled
def _to_float16(source: int, half: Any, count: int) -> None:
    values, bits = floats(source, count), words(source, count)
    for e in range(count):
        size = both(bits[e], _SIZE)
        # Round to nearest even at bit 13 and rebase the exponent; subnormals follow below.
        rounded = add(size, add(_U(0xFFF), both(shift_right(size, _U(13)), _U(1))))
        over = rounded >= _U(143 << 23)
        normal = _U(0x7C00) if over else add(shift_right(rounded, _U(13)), _LESS_EXPONENT)
        half[e] = np.uint16(either(both(shift_right(bits[e], _U(16)), _U(0x8000)), both(normal, _U(0x7FFF))))
    for e in range(count):
        distance = abs(values[e])
        if distance < _F16_LEAST:
            # Adding one half rounds to a multiple of 2^-24, the spacing of float16's subnormals.
            small = (distance + _F16_SMALL) - _F16_SMALL
            sign = both(shift_right(bits[e], _U(16)), _U(0x8000))
            half[e] = np.uint16(either(sign, _U(small * np.float32(2.0**24))))
