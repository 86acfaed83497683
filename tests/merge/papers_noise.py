"""An independent reading of the perturbations that EGGROLL makes again from seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, paper


def normals(key: int, seed: int, number: int, count: int) -> list[float]:
    """Standard normal numbers, in pairs by Box and Muller's transform of pairs of uniform ones."""
    digest = hashlib.sha256(f"{key}\n{seed}\n{number}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count + count % 2)
    uniform = [(int(own) // 2**11 + 0.5) / 2**53 for own in bits]
    pairs = [(math.sqrt(-2 * math.log(u)), 2 * math.pi * v) for u, v in zip(uniform[0::2], uniform[1::2], strict=True)]
    return [r * math.cos(a) for r, a in pairs] + [r * math.sin(a) for r, a in pairs]


@paper
def low_rank_noise(
    x: Sequence[Array], base: None, *, coefficients: str, first: int, noise: int, rank: int, keys: Any
) -> Array:
    (weights,) = x
    result = np.array(weights, dtype=np.float64)
    if weights.ndim != 2:
        return result
    rows, columns = weights.shape
    for place, coefficient in enumerate(map(float, str(coefficients).split())):
        drawn = normals(int(keys[0]), noise, first + place, (rows + columns) * rank)
        a = np.array(drawn[: rows * rank]).reshape(rows, rank)
        b = np.array(drawn[rows * rank : (rows + columns) * rank]).reshape(columns, rank)
        result += coefficient * a @ b.T
    return result
