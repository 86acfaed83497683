"""A Gaussian process over points of the unit cube whose values have errors of their own, and where to look next.

Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006): a squared exponential kernel with a length for
every coordinate (equation 5.1), a variance of its own for every observation. scikit-learn's takes longer to import than
all fits of a search take, and says nothing of the slopes of what it predicts, by which the best point is climbed to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]

_VARIANCE = (0.05, 50.0)  # of the function, in units of that of the values
_LENGTH = (0.3, 10.0)  # in units of a gene's range
_NOISE = (1e-4, 1.0)  # variance of what no error tells, in units of that of the values
_FIRST = (1.0, 1.5, 0.05)
_JITTER = 1e-6


@dataclass(frozen=True)
class GaussianProcess:
    """What was fitted.

    Attributes:
        points: of the unit cube, ``(k, n)``.
        theta: logarithms of the variance, of the n lengths and of the noise, ``(n + 2,)``.
        mean, scale: of the values that it was fitted to.
        weights: of the points in the mean, ``(k,)``.
        factor: Cholesky factor of the covariance, lower, ``(k, k)``.
    """

    points: Array
    theta: Array
    mean: float
    scale: float
    weights: Array
    factor: Array

    @staticmethod
    def fit(points: Array, values: Array, errors: Array, theta: Array | None = None) -> GaussianProcess:
        """Fit by the largest marginal likelihood (equation 5.8), climbed to from one start.

        The same arguments give the same bits, whatever the number of threads elsewhere.

        Args:
            points: ``(k, n)``.
            values: ``(k,)``, larger is better.
            errors: standard errors of the values, ``(k,)``; 0 where one is known.
            theta: where to begin, that of a fit to some of the points; ``None`` for the same lengths everywhere.
        """
        mean, scale = float(values.mean()), float(values.std()) or 1.0
        y, own = (values - mean) / scale, (errors / scale) ** 2 + _JITTER
        count = points.shape[1]
        limits = [_VARIANCE, *count * [_LENGTH], _NOISE]
        start = np.log([_FIRST[0], *count * [_FIRST[1]], _FIRST[2]]) if theta is None else theta
        with threadpool_limits(1, user_api="blas"):
            found = minimize(_loss, start, (points, y, own), method="L-BFGS-B", jac=True, bounds=np.log(limits))
            best = np.asarray(found.x, dtype=np.float64)
            factor: Array = np.asarray(np.linalg.cholesky(_covariance(best, points, own)[0]), dtype=np.float64)
            weights: Array = np.asarray(cho_solve((factor, True), y), dtype=np.float64)
        return GaussianProcess(points, best, mean, scale, weights, factor)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of what candidates at points ``(m, n)`` would score, ``(m,)`` each (2.25, 2.26).

        The deviation holds the noise that no error tells, not that of scoring on some items.
        """
        with threadpool_limits(1, user_api="blas"):
            cross = _kernel(self.theta, points, self.points)
            half = solve_triangular(self.factor, cross.T, lower=True)
        variance = np.exp(self.theta[0]) + np.exp(self.theta[-1]) - np.einsum("km,km->m", half, half)
        return self.mean + self.scale * (cross @ self.weights), self.scale * np.sqrt(np.maximum(variance, 1e-12))

    def best(self, starts: Sequence[Array], kappa: float) -> Array:
        """The point of the unit cube, ``(n,)``, with the highest ``mean - kappa * deviation`` that is climbed to.

        Args:
            starts: where to begin from.
            kappa: above 0 for what is surely good (a lower confidence bound), below for what may be.
        """
        with threadpool_limits(1, user_api="blas"):
            bounds = [(0.0, 1.0)] * self.points.shape[1]
            tried = [minimize(self._descent(kappa), at, method="L-BFGS-B", jac=True, bounds=bounds) for at in starts]
        best: Array = np.asarray(min(tried, key=lambda found: float(found.fun)).x, dtype=np.float64)
        return np.clip(best, 0.0, 1.0)

    def _descent(self, kappa: float) -> Callable[[Array], tuple[float, Array]]:
        """Minus what `best` looks for, in units of `scale`, and its slope."""
        inverse = np.exp(-2 * self.theta[1:-1])
        most = math.exp(self.theta[0]) + math.exp(self.theta[-1])

        def value(point: Array) -> tuple[float, Array]:
            cross = _kernel(self.theta, point[None], self.points)[0]
            slopes = cross[:, None] * (self.points - point) * inverse  # of every covariance, (k, n)
            solved = cho_solve((self.factor, True), cross, check_finite=False)
            deviation = math.sqrt(max(most - float(cross @ solved), 1e-12))
            slope = self.weights @ slopes + kappa * (solved @ slopes) / deviation
            return -(float(cross @ self.weights) - kappa * deviation), -np.asarray(slope)

        return value


def _kernel(theta: Array, left: Array, right: Array) -> Array:
    """Covariances of points ``(m, n)`` and ``(k, n)``, ``(m, k)``."""
    lengths = np.exp(theta[1:-1])
    a, b = left / lengths, right / lengths
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.asarray(np.exp(theta[0] - 0.5 * np.maximum(squares, 0.0)))


def _covariance(theta: Array, points: Array, own: Array) -> tuple[Array, Array]:
    """That of the observations, and that of the function alone."""
    plain = _kernel(theta, points, points)
    covariance = plain.copy()
    covariance[np.diag_indices_from(covariance)] = np.exp(theta[0]) + np.exp(theta[-1]) + own
    return covariance, plain


def _loss(theta: Array, points: Array, y: Array, own: Array) -> tuple[float, Array]:
    """Minus the logarithm of the marginal likelihood (equation 5.8), and its slope by `theta` (5.9)."""
    covariance, plain = _covariance(theta, points, own)
    factor = cho_factor(covariance, lower=True, check_finite=False)
    weights = cho_solve(factor, y, check_finite=False)
    loss = 0.5 * y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * len(y) * math.log(2 * math.pi)
    outer = np.outer(weights, weights) - cho_solve(factor, np.eye(len(y)), check_finite=False)
    by_kernel = outer * plain
    # sum_ij M_ij (x_i - x_j)^2 of every coordinate, without an array of all three
    squares = 2 * (by_kernel.sum(1) @ np.square(points) - np.einsum("kn,kn->n", points, by_kernel @ points))
    lengths = 0.5 * squares * np.exp(-2 * theta[1:-1])
    slope = [0.5 * by_kernel.sum(), *lengths, 0.5 * math.exp(theta[-1]) * np.trace(outer)]
    return float(loss), -np.array(slope)
