"""In which arithmetic a processor multiplies half precision."""

from __future__ import annotations

import torch

NATIVE = "bfloat16 by the processor's matrix units (AMX)"
FLOAT32 = (
    "bfloat16 weights, multiplied in float32 where forwards are shared: the processor has no matrix units for them"
)


def multiplies_bfloat16() -> bool:
    """Whether this processor has matrix units for bfloat16.

    Without them torch multiplies bfloat16 at a half to a third of the speed of float32, also by the instructions that
    some processors have for single vectors of it.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported()) if supported is not None else False


def arithmetic_of(dtype: str) -> str:
    """How models of a dtype are computed on this processor, in words; empty where that goes without saying."""
    if dtype != "bfloat16":
        return ""
    return NATIVE if multiplies_bfloat16() else FLOAT32
