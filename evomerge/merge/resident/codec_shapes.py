"""What a quantised matrix takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.merge.cache.merged_slice import Shapes

BLOCK = 64
"""Weights of NF4 that share a scale: what transformers' ``load_in_4bit`` has."""


def part_of(device: torch.device) -> int:
    """Weights that are widened to float32 at a time: on processors few, which stay in its cache and leave no holes."""
    return 1 << 18 if device.type == "cpu" else 1 << 24


def quantised_shapes(name: str, shape: Sequence[int]) -> Shapes:
    """Shape and dtype of the codes and of the scales of a matrix of a shape, as a codec of a name has them."""
    if name == "nf4":  # half a byte for each weight, in whole blocks
        blocks = -(-math.prod(shape) // BLOCK)
        return (((blocks, BLOCK // 2), torch.uint8), ((blocks,), torch.float32))
    return ((tuple(shape), torch.int8 if name == "int8" else torch.uint8), ((shape[0], 1), torch.float32))
