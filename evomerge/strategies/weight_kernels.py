"""The compiled loop over the weights of a child: cheap beside the evaluation of a small network."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.compiling import compiled


@compiled
def mix_and_mutate(
    a: Any, b: Any, begin: int, end: int, first: Any, second: Any, bits: Any, table: Any, bound: Any, out: Any
) -> bool:
    """``first * a + second * b`` and noise into elements `begin` to `end` of `out`.

    Args:
        a, b, out: float32.
        begin, end: which elements.
        first, second: their factors, float32.
        bits: uint16 for every element, whose upper twelve choose its noise.
        table: 4,096 values of noise, float32.
        bound: float32; what lies outside ``[-bound, bound]``, NaN as well, is reported.

    Returns:
        Whether all lies inside.
    """
    a, b, bits, out = a[begin:end], b[begin:end], bits[begin:end], out[begin:end]
    for i in range(len(out)):  # apart: this loop cannot use vectors, the next one can
        out[i] = table[np.uintp(bits[i]) >> np.uintp(4)]
    outside = np.uint32(0)
    for i in range(len(out)):
        value = first * a[i] + second * b[i] + out[i]
        out[i] = value
        outside |= np.uint32((not (value >= -bound)) | (not (value <= bound)))
    return outside == 0
