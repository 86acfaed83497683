"""The conditionally Gaussian steps of the latent model: what abilities and items are, given the other of the two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logistic(value: Array) -> Array:
    """``1 / (1 + exp(-value))``, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * value))


def inverse(matrix: Array) -> Array:
    """Of one matrix or of many."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def sweep(matrices: Array) -> Array:
    """Inverses of many small positive definite matrices at once, element by element (Goodnight, 1979).

    Each comes out the same whichever are beside it.

    Args:
        matrices: shape ``(P, P, N)``.
    """
    found = matrices.copy()
    for k in range(len(found)):
        pivot = 1 / found[k, k]
        row, column = found[k] * pivot, found[:, k].copy()
        found -= column[:, None] * row[None]
        found[k], found[:, k], found[k, k] = row, -column * pivot, pivot
    return found


class Triangle:
    """The upper triangles of symmetric matrices, row by row: ``T = P (P + 1) / 2`` numbers.

    Args:
        size: P.

    Attributes:
        times: how often each counts in the sum over a whole matrix, shape ``(T,)``.
        last: where the last column stands, shape ``(P,)``.
    """

    def __init__(self, size: int) -> None:
        self._rows, self._columns = np.triu_indices(size)
        self._places = np.empty((size, size), dtype=np.int64)
        self._places[self._rows, self._columns] = self._places[self._columns, self._rows] = range(len(self._rows))
        self.times = np.where(self._rows == self._columns, 1.0, 2.0)
        self.last = self._places[-1]

    def of(self, matrices: Array) -> Array:
        """Of matrices ``(P, P, ...)`` the triangles ``(T, ...)``."""
        return matrices[self._rows, self._columns]

    def square(self, triangles: Array) -> Array:
        """Of triangles ``(..., T)`` the matrices ``(..., P, P)``."""
        return triangles[..., self._places]


def moments(mean: Array, covariance: Array) -> tuple[Array, Array]:
    """``E[x]`` and ``E[x xᵀ]`` of abilities with a 1 behind them."""
    x = np.concatenate([mean, np.ones((len(mean), 1))], axis=1)
    xx = x[:, :, None] * x[:, None, :]
    xx[:, :-1, :-1] += covariance
    return x, xx


def bound(
    xx: Array, second: Array, scaled: Array, seen: NDArray[np.bool_], binary: bool, precision: Array
) -> tuple[Array, Array]:
    """Weights and targets of the Gaussian that takes each value's place (Jaakkola and Jordan, 2000, eq. 10)."""
    size = second.shape[1] ** 2
    if not binary:
        return np.where(seen, precision, 0.0), np.where(seen, scaled * precision, 0.0)
    half = xx.reshape(len(xx), size) @ second.reshape(len(second), size).T
    half = 0.5 * np.sqrt(np.maximum(half, 1e-12))
    weights = np.where(seen, precision * (0.25 * np.tanh(half) / half), 0.0)
    return weights, np.where(seen, precision * (scaled - 0.5), 0.0)


def abilities_given(
    mean: Array, second: Array, weights: Array, targets: Array, prior_mean: Array, prior_precision: Array
) -> tuple[Array, Array]:
    """Posteriors of abilities, means ``(K, D)`` and covariances ``(K, D, D)``, given items.

    Args:
        mean, second: of the items' parameters, first and second moments.
        weights, targets: of `bound`.
        prior_mean: shape ``(D,)``.
        prior_precision: shape ``(D, D)``.
    """
    size = mean.shape[1] - 1
    slopes = second[:, :-1, :-1].reshape(len(mean), size * size)
    precision = prior_precision + (weights @ slopes).reshape(-1, size, size)
    linear = prior_precision @ prior_mean + targets @ mean[:, :-1] - weights @ second[:, :-1, -1]
    return solved(precision, linear)


def items_given(
    prior_mean: Array, prior_precision: Array, x: Array, xx: Array, weights: Array, targets: Array
) -> tuple[Array, Array]:
    """Posteriors of the items' parameters given abilities: precision, and precision times mean.

    Args:
        prior_mean: shape ``(columns, D + 1)``.
        prior_precision: likewise: the diagonal.
        x, xx: of `moments`.
        weights, targets: of `bound`.
    """
    size = x.shape[1]
    precision = (weights.T @ xx.reshape(len(xx), size * size)).reshape(-1, size, size)
    precision[:, range(size), range(size)] += prior_precision
    return precision, prior_precision * prior_mean + targets.T @ x


def solved(precision: Array, linear: Array) -> tuple[Array, Array]:
    """Means and covariances of Gaussians."""
    covariance = inverse(precision)
    return (covariance @ linear[..., None])[..., 0], covariance
