"""What all kernels read and write with: memory at an address, in any of the merged dtypes, past the cache where it pays."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from evomerge.merge.kernels.compiling import compiled

F32, BF16, F16 = 0, 1, 2
"""Codes of the merged dtypes."""

_LINE = 64  # bytes
_U = np.uint32
_EXPONENT = np.uint32(0x7F800000)
_SIZE = np.uint32(0x7FFFFFFF)
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


@intrinsic
def _stream_32(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy 32 bytes to an address that is a multiple of 32, past the cache: the line is not read first."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 8).as_pointer()
        value = builder.load(builder.inttoptr(arguments[1], vector))
        value.align = 4
        store = builder.store(value, builder.inttoptr(arguments[0], vector))
        store.align = 32
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, source), build


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
def read(address: int, kind: int, start: int, count: int, scratch: Any) -> Any:
    """Elements from `start` as float32: the memory itself where it is float32, else `scratch` filled."""
    if kind == F32:
        return carray(pointer(address + 4 * start), (count,), np.float32)
    half = carray(pointer(address + 2 * start), (count,), np.uint16)
    bits = scratch.view(np.uint32)
    if kind == BF16:
        for e in range(count):
            bits[e] = np.uint32(half[e]) << np.uint32(16)
    else:
        for e in range(count):
            # The exponent is rebased by a product, which is exact also for subnormals.
            bits[e] = np.uint32(half[e] & np.uint16(0x7FFF)) << np.uint32(13)
        for e in range(count):
            scratch[e] = scratch[e] * _F16_SCALE
        for e in range(count):
            word = np.uint32(half[e])
            infinite = (word & np.uint32(0x7C00)) == np.uint32(0x7C00)
            bits[e] |= ((word & np.uint32(0x8000)) << np.uint32(16)) | (_EXPONENT if infinite else np.uint32(0))
    return scratch


@compiled
def is_infinite(peak: Any) -> int:
    """Whether `write` has seen a number that is not finite."""
    seen = np.uint32(0)
    for e in range(peak.shape[0]):
        seen |= peak[e]
    return np.int64(seen >> np.uint32(31))


@compiled
def write(values: Any, address: int, kind: int, start: int, count: int, stream: bool, scratch: Any, peak: Any) -> None:
    """Round float32 `values` to the target's dtype and store them.

    Args:
        values: float32, of at least `count` elements.
        address, kind, start: of the target.
        count: elements.
        stream: write whole vectors past the cache; asks for a target and start that are multiples of 32 bytes.
        scratch: float32, overwritten.
        peak: uint32; the highest bit of an element is set when one stored from there is not finite (`is_infinite`).
    """
    bits = values.view(np.uint32)
    if kind == F32:
        for e in range(count):
            peak[e] = _U(peak[e] | _U(_U(bits[e] & _SIZE) + _U(0x00800000)))
        done = 0
        if stream:
            done = count // 8 * 8
            for e in range(0, done, 8):
                _stream_32(address + 4 * (start + e), values.ctypes.data + 4 * e)
        target = carray(pointer(address + 4 * start), (count,), np.float32)
        for e in range(done, count):
            target[e] = values[e]
        return
    half = scratch.view(np.uint16)
    if kind == BF16:
        for e in range(count):
            word = bits[e]
            rounded = _U(_U(word + _U(0x7FFF) + _U(_U(word >> _U(16)) & _U(1))) >> _U(16))
            half[e] = np.uint16(rounded)
            peak[e] = _U(peak[e] | _U(_U(_U(rounded & _U(0x7FFF)) + _U(0x80)) << _U(16)))
    else:
        for e in range(count):
            size = _U(bits[e] & _SIZE)
            # Round to nearest even at bit 13 and rebase the exponent; subnormals follow below.
            rounded = _U(size + _U(0xFFF) + _U(_U(size >> _U(13)) & _U(1)))
            over = rounded >= _U(143 << 23)
            normal = _U(0x7C00) if over else _U(_U(rounded >> _U(13)) - _U(112 << 10))
            half[e] = np.uint16(_U(_U(_U(bits[e] >> _U(16)) & _U(0x8000)) | _U(normal & _U(0x7FFF))))
            peak[e] = _U(peak[e] | (_U(0x80000000) if over else _U(0)))
        for e in range(count):
            size_of = abs(values[e])
            if size_of < _F16_LEAST:
                # Adding one half rounds to a multiple of 2^-24, the spacing of float16's subnormals.
                small = (size_of + _F16_SMALL) - _F16_SMALL
                half[e] = np.uint16(_U(_U(_U(bits[e] >> _U(16)) & _U(0x8000)) | _U(small * np.float32(2.0**24))))
    done = 0
    if stream:
        done = count // 16 * 16
        for e in range(0, done, 16):
            _stream_32(address + 2 * (start + e), scratch.ctypes.data + 2 * e)
    target16 = carray(pointer(address + 2 * start), (count,), np.uint16)
    for e in range(done, count):
        target16[e] = half[e]
