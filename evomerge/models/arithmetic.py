"""In which arithmetic a processor multiplies half precision."""

from __future__ import annotations

import functools
import time

import torch
import torch.nn.functional as F

NATIVE = "bfloat16 as it is, which this processor multiplies faster than float32"
FLOAT32 = "bfloat16 weights, multiplied in float32 where forwards are shared, which this processor does faster"
_TRIALS = 12


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 faster on this processor than after converting it to float32.

    Measured once, in some hundredths of a second, unless there are matrix units (AMX): instructions for single vectors
    of bfloat16 make it twice as fast on some processors that have them, and a third as fast on others.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if supported is not None and supported():
        return True
    inputs, weight = (torch.ones(rows, 512, dtype=torch.bfloat16) for rows in (256, 512))
    calls = (lambda: F.linear(inputs, weight), lambda: F.linear(inputs.float(), weight.float()).bfloat16())
    seconds: list[list[float]] = [[], []]
    for _ in range(_TRIALS):  # in turns: other work of the machine hits both
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    native, converted = map(min, seconds)
    return native < converted


def arithmetic_of(dtype: str) -> str:
    """How models of a dtype are computed on this processor, in words; empty where that goes without saying."""
    if dtype != "bfloat16":
        return ""
    return NATIVE if multiplies_bfloat16() else FLOAT32
