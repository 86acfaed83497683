"""Operations on two uint32 words; numba's own would widen them to 64 bits, and halve what a vector holds."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


def _word_operation(instruction: str) -> Any:
    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(arguments[0], arguments[1])

        return types.uint32(types.uint32, types.uint32), build

    return operation


add, multiply, xor = _word_operation("add"), _word_operation("mul"), _word_operation("xor")
both, either, shift_right = _word_operation("and_"), _word_operation("or_"), _word_operation("lshr")
