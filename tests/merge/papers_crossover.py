"""An independent reading of M2N2's child: of two parts, each interpolated by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from merge.papers import Array, paper


def _arc(a: Array, b: Array, t: float) -> Array:
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    cosine = float(a @ b) / lengths if lengths > 1e-12 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@paper
def crossover(x: Sequence[Array], base: Array | None, *, t: float, split: float, path: str) -> Array:
    a, b = (v.reshape(-1) for v in x)
    at = round(split * a.size)
    mixed = []
    for u, v, mix in ((a[:at], b[:at], t), (a[at:], b[at:], 1 - t)):
        mixed.append(_arc(u, v, mix) if path == "slerp" else u + mix * (v - u))
    return np.concatenate(mixed).reshape(x[0].shape)
