"""Quadratic surfaces: what is smooth of a landscape."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.landscape.features import Rows

Array = NDArray[np.float64]

MOST_PRODUCTS = 64
"""Features, at most, whose products with each other are terms; of more there are squares only."""
BEYOND = 0.1
"""How far predictions may leave the range of what was seen, as a share of it."""
_ALPHAS = tuple(10.0**power for power in range(-2, 4))


@dataclass(frozen=True)
class Surface:
    """A polynomial of degree two in features, fitted with a penalty (response surfaces: Box and Wilson 1951).

    Attributes:
        center, scale: of the features, float64 of shape ``(features,)``.
        coefficients: of the terms (`terms_of`), float64 of shape ``(terms, targets)``.
        intercept: float64 of shape ``(targets,)``.
        low, high: what predictions are cut to, likewise.
    """

    center: Array
    scale: Array
    coefficients: Array
    intercept: Array
    low: Array
    high: Array

    @staticmethod
    def fitted(rows: Rows, values: Array) -> Surface:
        """Fit values of shape ``(rows, targets)``.

        Each target has the penalty, of 0.01 to 1000 by factors of ten, that predicts left-out rows best (Golub, Heath
        and Wahba 1979); terms are scaled to a standard deviation of 1 before.
        """
        from sklearn.linear_model import RidgeCV

        center, scale = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
        scale = np.where(scale > 0, scale, 1.0)
        terms = terms_of((rows - center) / scale)
        middle, width = terms.mean(axis=0), terms.std(axis=0)
        width = np.where(width > 1e-12, width, 1.0)
        model = RidgeCV(_ALPHAS, alpha_per_target=True).fit((terms - middle) / width, values)
        coefficients = (np.atleast_2d(model.coef_) / width).T
        span = np.ptp(values, axis=0)
        low, high = values.min(axis=0) - BEYOND * span, values.max(axis=0) + BEYOND * span
        return Surface(center, scale, coefficients, model.intercept_ - middle @ coefficients, low, high)

    def check(self, features: int, targets: int) -> None:
        """`ConfigError` unless all of it is finite and of these sizes."""
        wanted = {
            **dict.fromkeys(("center", "scale"), (features,)),
            **dict.fromkeys(("intercept", "low", "high"), (targets,)),
            "coefficients": (terms_of(np.zeros((1, features))).shape[1], targets),
        }
        for own in fields(self):
            values = getattr(self, own.name)
            if values.shape != wanted[own.name] or not np.isfinite(values).all() or (self.scale <= 0).any():
                what = f"{own.name} of shape {values.shape}"
                raise ConfigError(f"the surface of a landscape has {what}", f"numbers of shape {wanted[own.name]}")

    def predict(self, rows: Rows) -> Array:
        """Values for rows of features, shape ``(rows, targets)``."""
        terms = terms_of((rows - self.center) / self.scale)
        return np.asarray(np.clip(terms @ self.coefficients + self.intercept, self.low, self.high))


def terms_of(rows: Array) -> Array:
    """Features, and the products of all pairs of them, squares among them; of many features, their squares only."""
    count = rows.shape[1]
    if count > MOST_PRODUCTS:
        return np.concatenate([rows, rows**2], axis=1)
    first, second = np.triu_indices(count)
    return np.concatenate([rows, rows[:, first] * rows[:, second]], axis=1)
