"""Noise along the directions in which good candidates differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def directions(points: Array) -> tuple[Array, Array]:
    """The singular directions of points about their mean, and the standard deviation along each.

    Args:
        points: shape ``(n, genes)``, two or more.

    Returns:
        Unit vectors, shape ``(k, genes)``, the largest element of each positive, and deviations, shape ``(k,)``, with
        ``k = min(n, genes)``.
    """
    _, deviations, axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    largest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(len(axes)), largest])  # which of two signs is a matter of the library
    return axes * np.where(signs == 0, 1.0, signs)[:, None], deviations / np.sqrt(len(points) - 1)


def singular_noise(points: Array, sigma: float, rng: np.random.Generator) -> Array:
    """``sigma sum_k z_k s_k v_k``: noise in the space that points span, as large in each direction as they are apart.

    After CycleQD's mutation (Kuroki et al., arXiv 2410.14735), which adds ``U diag(w s) V^T`` with random w to weights,
    from the singular value decomposition of a model's task vector: no direction that the models do not have.

    Args:
        points: of the elites, shape ``(n, genes)``; zeros come back for a single one.
        sigma: what normal numbers z are multiplied by.
    """
    if len(points) < 2:
        return np.zeros(points.shape[1])
    axes, deviations = directions(points)
    return np.asarray(sigma * (rng.standard_normal(len(axes)) * deviations) @ axes, dtype=np.float64)
