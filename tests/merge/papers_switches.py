"""Independent readings of the switches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from merge.papers import Array, float32, paper


@paper
def emr_switch(x: Sequence[Array], base: Array, *, rescale: Any) -> Array:
    shared, own = [[float(v) for v in float32(each - base).reshape(-1)] for each in x]
    mask = [math.copysign(1, s) == math.copysign(1, t) and s != 0 and t != 0 for s, t in zip(shared, own, strict=True)]
    kept = math.fsum(abs(s) for s, m in zip(shared, mask, strict=True) if m)
    factor = math.fsum(map(abs, own)) / kept if kept and rescale[1] else 1.0
    changes = [factor * s if m else 0.0 for s, m in zip(shared, mask, strict=True)]
    return base + np.array(changes, dtype=np.float64).reshape(base.shape)


@paper
def tall_switch(x: Sequence[Array], base: Array, *, selectivity: Any) -> Array:
    shared, own = [float32(each - base) for each in x]
    mask = np.abs(own) >= float32(np.abs(float32(shared - own)) * np.float32(selectivity[1]))
    return base + mask * (x[0] - base)


@paper
def twin_switch(x: Sequence[Array], base: Array | None, *, rank: Any) -> Array:
    shared, own = x
    if rank[1] == 0:
        return shared
    keep = max(1, int(rank[1] * min(own.shape))) if own.ndim == 2 and own.size else 0
    if not keep or keep * sum(own.shape) >= own.size:
        return own
    u, s, vh = np.linalg.svd(float32(own - shared).astype(np.float64), full_matrices=False)
    return shared + (u[:, :keep] * s[:keep]) @ vh[:keep]
