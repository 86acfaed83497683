"""A full quadratic inside a link, fitted to the scores of one objective: what MAP takes for the landscape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit, logit

Array = NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]
LINKS: tuple[str, ...] = get_args(Link)

_RIDGE = 1e-6  # of the mean square of a column: what fewer points than coefficients leave open is small
_EDGE = 1e-3  # how near to a link's end a value may come where the first guess is made
_FOLDS = 5
_MOST_LEVERAGE = 0.9  # of a point that alone decides a coefficient nothing is known


def coefficients(genes: int) -> int:
    """How many a full quadratic of so many genes has: ``(n + 1)(n + 2) / 2``."""
    return (genes + 1) * (genes + 2) // 2


def usual_samples(genes: int) -> int:
    """How many a quadratic of so many genes is fitted to first: twice its coefficients, and a dozen at least."""
    return max(2 * coefficients(genes), 12)


def link_for(values: Array) -> Link:
    """The link whose range the values are in: shares of one, what is never negative, or anything."""
    if values.size and (values >= 0).all():
        return "sigmoid" if (values <= 1).all() else "softplus"
    return "identity"


@dataclass(frozen=True)
class Quadratic:
    """``link(c + b x + x' A x)``, fitted by least squares on the values themselves.

    Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation"
    (arXiv 2406.07529), equation 4, with a sigmoid for metrics in 0 to 1 and a softplus for losses (appendix).

    Attributes:
        link: ``identity``, ``sigmoid`` or ``softplus``.
        weights: of 1, of every coordinate and of every product of two, ``(coefficients(n),)``.
        inverse: of the features' products, for `leverage`.
        farthest: the largest leverage of the points that it was fitted to.
    """

    link: Link
    weights: Array
    inverse: Array = field(repr=False)
    farthest: float

    @staticmethod
    def fit(points: Array, values: Array, link: Link | Literal["auto"] = "auto") -> Quadratic:
        """Fit it.

        Args:
            points: ``(k, n)``, of the unit cube.
            values: ``(k,)``, finite, in the user's own direction.
            link: ``auto`` for `link_for`.
        """
        chosen = link_for(values) if link == "auto" else link
        features = _features(points)
        products = features.T @ features
        products[np.diag_indices_from(products)] += _RIDGE * len(points)
        inverse: Array = np.asarray(np.linalg.inv(products), dtype=np.float64)
        farthest = float(_leverage(features, inverse).max())
        return Quadratic(chosen, _fitted(features, values, chosen), inverse, farthest)

    def predict(self, points: Array) -> Array:
        """What the points ``(k, n)`` would score, ``(k,)``."""
        return _linked(self.link, _features(points) @ self.weights)

    def missed(self, points: Array, values: Array) -> Array:
        """What the fit would miss of each value ``(k,)``, had its point been left out: its residual over 1 less its
        leverage (of the link's inside, so that it is exact for ``identity``).

        Args:
            points, values: that it was fitted to.
        """
        leverage = np.minimum(_leverage(_features(points), self.inverse), _MOST_LEVERAGE)
        return np.asarray((values - self.predict(points)) / (1 - leverage))

    def extrapolates(self, points: Array) -> NDArray[np.bool_]:
        """Which of the points lie farther out than any that it was fitted to (by leverage)."""
        return _leverage(_features(points), self.inverse) > self.farthest * (1 + 1e-9)


def held_back(points: Array, values: Array, link: Link | Literal["auto"] = "auto") -> float:
    """R2: the share of the variance that fits to four fifths of the points tell of the last fifth, all five together.

    Args:
        points, values, link: as of `Quadratic.fit`.

    Returns:
        At most 1, below 0 where the mean would have told more; NaN where there are too few points or none differ.
    """
    features, chosen = _features(points), link_for(values) if link == "auto" else link
    if len(values) < features.shape[1] * _FOLDS / (_FOLDS - 1) or np.ptp(values) == 0:
        return float("nan")
    told = np.empty_like(values)
    fold = np.arange(len(values)) % _FOLDS
    for turn in range(_FOLDS):
        out = fold == turn
        told[out] = _linked(chosen, features[out] @ _fitted(features[~out], values[~out], chosen))
    return float(1 - np.square(told - values).sum() / np.square(values - values.mean()).sum())


def _features(points: Array) -> Array:
    """1, the coordinates, and their products, of points ``(k, n)`` seen from the middle of the cube."""
    x = 2 * points - 1
    left, right = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(x), 1)), x, x[:, left] * x[:, right]])


def _leverage(features: Array, inverse: Array) -> Array:
    return np.asarray(np.einsum("ki,ij,kj->k", features, inverse, features, optimize=True))


def _linked(link: Link, z: Array) -> Array:
    if link == "sigmoid":
        return np.asarray(expit(z))
    return np.logaddexp(0.0, z) if link == "softplus" else z


def _slope(link: Link, z: Array) -> Array:
    if link == "sigmoid":
        y = expit(z)
        return np.asarray(y * (1 - y))
    return np.asarray(expit(z)) if link == "softplus" else np.ones_like(z)


def _fitted(features: Array, values: Array, link: Link) -> Array:
    """The weights of least squares with a little ridge, beginning where the link's inverse of the values puts them."""
    if link == "sigmoid":
        guess = logit(np.clip(values, _EDGE, 1 - _EDGE))
    elif link == "softplus":
        guess = np.log(np.expm1(np.clip(values, _EDGE, 500.0)))
        guess = np.where(values > 30, values, guess)
    else:
        guess = values
    ridge = np.sqrt(_RIDGE * len(values)) * np.eye(features.shape[1])
    ridge[0, 0] = 0.0
    start = np.linalg.lstsq(np.vstack([features, ridge]), np.append(guess, np.zeros(len(ridge))), rcond=None)[0]
    if link == "identity":
        return np.asarray(start)

    def missed(weights: Array) -> Array:
        return np.append(_linked(link, features @ weights) - values, ridge @ weights * 1e-2)

    def slopes(weights: Array) -> Array:
        return np.vstack([_slope(link, features @ weights)[:, None] * features, ridge * 1e-2])

    return np.asarray(least_squares(missed, start, jac=slopes, method="trf", max_nfev=100).x)
