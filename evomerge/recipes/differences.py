"""What the models of a pool differ by, slice by slice, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.recipes.slices import SliceId

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Differences:
    """Lengths and angles of task vectors: of every source's slice, what it has more than the base's.

    Attributes:
        models: the sources, in order.
        slices: of the base, in order.
        base: squared Frobenius norms of the base's slices, float64 of shape ``(slices,)``.
        products: inner products of the task vectors, float64 of shape ``(slices, models, models)``.
    """

    models: tuple[str, ...]
    slices: tuple[SliceId, ...]
    base: Array
    products: Array

    def shift(self, model: str, slopes: Sequence[tuple[SliceId, float]]) -> float:
        """How far a step of 1 takes the slices, relative to their own norm in the base.

        ``sqrt(sum_k s_k^2 |tau_k|^2 / sum_k |theta_k|^2)``, where ``s_k`` is what slice k's weight changes by.
        Infinite where the base is zero and the task vector is not.
        """
        own, places = self.models.index(model), [self.slices.index(slice_) for slice_, _ in slopes]
        squares = np.array([slope**2 for _, slope in slopes])
        moved = float((squares * self.products[places, own, own]).sum())
        whole = float(self.base[places].sum())
        return float(np.sqrt(moved / whole)) if whole else (np.inf if moved else 0.0)

    def cosines(self, model: str, slopes: Sequence[tuple[SliceId, float]]) -> dict[str, float]:
        """Cosines of the angles between a model's task vector over these slices and the other models'; 0 of none."""
        own, places = self.models.index(model), [self.slices.index(slice_) for slice_, _ in slopes]
        squares = np.array([slope**2 for _, slope in slopes])
        products = np.tensordot(squares, self.products[places], axes=1)
        norms = np.sqrt(np.maximum(np.diag(products), 0.0))
        return {
            other: float(products[own, i] / (norms[own] * norms[i])) if norms[own] * norms[i] else 0.0
            for i, other in enumerate(self.models)
            if other != model
        }
