"""Words and floats in vector registers: what code written for LLVM by hand is made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

WORD, LONG, FLOAT, HALF, BYTE = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(16), ir.IntType(8)


class Lanes:
    """Operations on so many elements at a time.

    Args:
        builder: of LLVM's code.
        lanes: elements at a time; 1 for plain numbers.
    """

    def __init__(self, builder: Any, lanes: int) -> None:
        self.b, self.lanes = builder, lanes
        self.float, self.word = self.many(FLOAT), self.many(WORD)

    def many(self, kind: Any) -> Any:
        """The type of all lanes."""
        return kind if self.lanes == 1 else ir.VectorType(kind, self.lanes)

    def constant(self, number: int) -> Any:
        """A word in every lane."""
        number -= (number >> 31) << 32
        return ir.Constant(self.word, number if self.lanes == 1 else [number] * self.lanes)

    def real(self, number: float) -> Any:
        """A float32 in every lane."""
        return ir.Constant(self.float, number if self.lanes == 1 else [number] * self.lanes)

    def all(self, value: Any) -> Any:
        """A value in every lane."""
        if self.lanes == 1:
            return value
        vector = self.b.insert_element(ir.Constant(self.many(value.type), ir.Undefined), value, WORD(0))
        zeros = ir.Constant(ir.VectorType(WORD, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), zeros)

    def rounded_to_single(self, value: Any) -> Any:
        """A float64 as float32 in every lane."""
        return self.all(self.b.fptrunc(value, FLOAT))

    def load_one(self, address: Any, index: int, kind: Any) -> Any:
        """One value of an array."""
        size = 8 if kind is LONG else 4
        return self.b.load(self.b.inttoptr(self.b.add(address, LONG(index * size)), kind.as_pointer()))

    def prefetch(self, address: Any) -> None:
        """Ask for a cache line."""
        byte = BYTE.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, WORD, WORD, WORD])
        function = self.b.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        self.b.call(function, [self.b.inttoptr(address, byte), WORD(0), WORD(0), WORD(1)])
