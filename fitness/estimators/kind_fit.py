"""The variational EM of `item_response` for the items of one kind: answers, or numbers.

Whatever has a value for each item lies in memory item after item, parameters first: shapes ``(D + 1, columns)`` and
``(D + 1, D + 1, columns)``. Of symmetric matrices the upper triangle is computed, ``T = (D + 1)(D + 2) / 2`` numbers.
What a race leaves of the items is little: steps of the single values are taken for those that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fitness.estimators.latent_steps import Array, Triangle, logistic, moments, solved, sweep

_STEPS = 50
_TOLERANCE = 2e-3
_PRIOR_MODELS = 4.0
_MOST_NARROW = 4.0
_SLOPE_VARIANCE, _INTERCEPT_VARIANCE = 0.5, 2.0


class KindFit(NamedTuple):
    """The fitted items of one kind.

    Attributes:
        x, xx: of the models' abilities, as `latent_steps.moments` gives them.
        noise: precision of each item, shape ``(columns,)``.
        mean, covariance: of the items' parameters, shapes ``(columns, D + 1)`` and ``(columns, D + 1, D + 1)``.
        precision, linear: of these posteriors.
        weights, targets: what each value adds to those, shape ``(K, columns)``.
    """

    x: Array
    xx: Array
    noise: Array
    mean: Array
    covariance: Array
    precision: Array
    linear: Array
    weights: Array
    targets: Array


class _Values:
    """The values of models, as the steps need them.

    Args:
        values: shape ``(K, columns)``, NaN where an item was not run.
        binary: whether they are answers, or chances of these.
        parts: the columns of each metric.
    """

    def __init__(self, values: Array, binary: bool, parts: Sequence[slice]) -> None:
        self.seen = ~np.isnan(values)
        self.scaled = np.where(self.seen, values, 0.0)
        self.shape, self.parts, self.binary = values.shape, parts, binary
        self.counts = self.seen.sum(axis=0)
        self.ones = self.seen.astype(np.float64)
        self.flat = np.flatnonzero(self.seen)
        self.packed = self.scaled.ravel()[self.flat]
        self.linear = np.where(self.seen, values - 0.5, 0.0) if binary else self.scaled
        part_of = np.empty(values.shape[1], dtype=np.int64)
        for number, part in enumerate(parts):
            part_of[part] = number
        self.part_of = part_of[self.flat % values.shape[1]]
        """Of each value that there is, the number of its metric."""
        soft = ~np.isin(self.packed, (0.0, 1.0))
        self.soft = np.bincount(self.part_of, weights=soft, minlength=len(parts)) > 0
        """By metric, whether some answer is a chance."""
        self.squares = np.square(self.scaled).sum(axis=0)

    def taken(self, dense: Array) -> Array:
        """Of a number for each model and item those where there is a value."""
        return dense.ravel()[self.flat]

    def spread(self, packed: Array) -> Array:
        """The opposite of `taken`, 0 where there is no value."""
        dense = np.zeros(self.shape)
        dense.ravel()[self.flat] = packed
        return dense

    def means(self, packed: Array) -> list[float]:
        """By metric the mean of a number for each value; 0 where there are none."""
        count = len(self.parts)
        totals = np.bincount(self.part_of, weights=packed, minlength=count)
        found: list[float] = (totals / np.maximum(np.bincount(self.part_of, minlength=count), 1)).tolist()
        return found


def fit_kind(values: Array, binary: bool, parts: Sequence[slice], dimensions: int) -> KindFit:
    """Fit the items of one kind.

    Args:
        values: shape ``(K, columns)``, in units of the metrics' scales, NaN where an item was not run.
        binary: whether they are right and wrong answers, or chances of these.
        parts: the columns of each metric.
        dimensions: D.
    """
    known = _Values(values, binary, parts)
    models, columns = values.shape
    size = dimensions + 1
    upper = Triangle(size)
    mean, abilities = _start(known, dimensions)
    covariance = np.zeros((size, size, columns))
    covariance[range(size), range(size)] = 0.1
    noise = np.ones(columns)
    x, xx = moments(abilities, np.zeros((models, dimensions, dimensions)))
    old = mean
    for _ in range(_STEPS):
        second = upper.of(covariance + mean[:, None] * mean[None])
        weights = known.spread(_weights(known, upper, xx, second)) if binary else known.ones
        # of answers the noise is in the weights as well as in the targets, of numbers it is all that the weights are
        own = second * noise
        found = weights @ own.T
        linear = known.linear @ (mean[:-1] * noise).T - found[:, upper.last[:-1]]
        precision = upper.square(found)[:, :-1, :-1] + np.eye(dimensions)
        x, xx = moments(*solved(precision, linear))
        x, xx, mean, variances = _standardised(x, xx, mean, covariance)
        centre, prior = _priors(mean, variances, parts)
        xt = upper.of(xx.transpose(1, 2, 0))
        given, told = xt @ weights, x.T @ known.linear
        precision_of = upper.square((given * noise).T).transpose(1, 2, 0)
        precision_of[range(size), range(size)] += prior
        linear_of = prior * centre + told * noise
        covariance = sweep(precision_of)
        mean = np.einsum("abi,bi->ai", covariance, linear_of)
        used, noise = (
            noise,
            (_narrowness(known, x, mean) if binary else _noise(known, upper, given, told, mean, covariance)),
        )
        if np.abs(mean - old).max() < _TOLERANCE * max(1.0, np.abs(old).max()):
            break
        old = mean
    whole = np.ascontiguousarray
    return KindFit(
        x,
        xx,
        noise,
        whole(mean.T),
        whole(covariance.transpose(2, 0, 1)),
        whole(precision_of.transpose(2, 0, 1)),
        whole(linear_of.T),
        weights * used,
        known.linear * used,
    )


def _weights(known: _Values, upper: Triangle, xx: Array, second: Array) -> Array:
    """Of each answer the precision of the Gaussian in its place (Jaakkola and Jordan, 2000, eq. 10), the noise not
    yet in it."""
    half = known.taken((upper.of(xx.transpose(1, 2, 0)) * upper.times[:, None]).T @ second)
    half = 0.5 * np.sqrt(np.maximum(half, 1e-12))
    found: Array = 0.25 * np.tanh(half) / half
    return found


def _standardised(x: Array, xx: Array, mean: Array, covariance: Array) -> tuple[Array, Array, Array, Array]:
    """The same model, abilities with mean 0 and variance 1: EM alone takes long to come to these (Liu et al., 1998).

    Returns:
        Moments of abilities, means and variances of the items' parameters, shapes ``(D + 1, columns)``.
    """
    centre = x[:, :-1].mean(axis=0)
    second = np.diagonal(xx, axis1=1, axis2=2)[:, :-1].mean(axis=0)
    scale = np.sqrt(np.maximum(second - np.square(centre), 1e-12))
    size = len(centre) + 1
    of_abilities = np.eye(size)
    of_abilities[:-1, :-1], of_abilities[:-1, -1] = np.diag(1 / scale), -centre / scale
    shift = np.append(centre, 1.0)
    new = np.concatenate([mean[:-1] * scale[:, None], (shift @ mean)[None]])
    variances = np.diagonal(covariance).T.copy()
    variances[:-1] *= np.square(scale)[:, None]
    variances[-1] = shift @ (shift @ covariance.reshape(size, -1)).reshape(size, -1)
    return x @ of_abilities.T, of_abilities @ xx @ of_abilities.T, new, variances


def _start(known: _Values, dimensions: int) -> tuple[Array, Array]:
    """From the singular vectors of what is left of the values without the items' means: parameters, abilities."""
    scaled, counts, binary = known.scaled, known.counts, known.binary
    level = np.empty(scaled.shape[1])
    for part in known.parts:
        total = max(int(counts[part].sum()), 1)
        overall = (scaled[:, part].sum() + 0.5 * binary) / (total + binary)
        level[part] = (scaled[:, part].sum(axis=0) + overall) / (counts[part] + 1)
    rest = np.where(known.seen, scaled - level, 0.0)
    left, sizes, right = np.linalg.svd(rest, full_matrices=False)
    kept = min(dimensions, len(sizes))
    abilities, mean = np.zeros((len(scaled), dimensions)), np.zeros((dimensions + 1, scaled.shape[1]))
    root = np.sqrt(len(scaled))
    abilities[:, :kept] = left[:, :kept] * root
    steep = 1 / np.maximum(level * (1 - level), 0.05) if binary else np.ones(len(level))
    mean[:kept] = (right[:kept] * sizes[:kept, None] / root) * steep
    inside = np.clip(level, 0.02, 0.98)
    mean[-1] = np.log(inside / (1 - inside)) if binary else level
    return mean, abilities


def _priors(mean: Array, variances: Array, parts: Sequence[slice]) -> tuple[Array, Array]:
    """By column the mean and precision of its metric's parameters, from all of the metric's items."""
    size = len(mean)
    usual = np.array([_SLOPE_VARIANCE] * (size - 1) + [_INTERCEPT_VARIANCE])
    means, precisions = np.empty_like(mean), np.empty_like(mean)
    for part in parts:
        own = mean[:, part]
        count = own.shape[1]
        centre = own.sum(axis=1) / (count + 1)
        variance = (np.square(own - centre[:, None]) + variances[:, part]).sum(axis=1) + _PRIOR_MODELS * usual
        means[:, part] = centre[:, None]
        precisions[:, part] = ((count + _PRIOR_MODELS) / variance)[:, None]
    return means, precisions


def _noise(known: _Values, upper: Triangle, given: Array, told: Array, mean: Array, covariance: Array) -> Array:
    """The precision of the noise of each item, shrunk to that of its metric.

    Args:
        known, upper: as in `fit_kind`.
        given: sums of ``E[x xᵀ]`` over the models that an item has values of, shape ``(T, columns)``.
        told: of ``E[x]`` times these values, shape ``(D + 1, columns)``.
        mean, covariance: of the items' parameters.
    """
    second = upper.of(covariance + mean[:, None] * mean[None])
    expected = np.einsum("ti,ti,t->i", given, second, upper.times)
    squares = known.squares - 2 * np.einsum("ai,ai->i", mean, told) + expected
    found = np.ones(mean.shape[1])
    for part in known.parts:
        counts = known.counts[part]
        common = max(squares[part].sum() / max(int(counts.sum()), 1), 1e-6)
        found[part] = (counts + _PRIOR_MODELS) / (squares[part] + _PRIOR_MODELS * common)
    return found


def _narrowness(known: _Values, x: Array, mean: Array) -> Array:
    """How many answers a chance is worth, by column: the variance of answers over that of the chances of a metric."""
    found = np.ones(mean.shape[1])
    if not known.soft.any():
        return found
    chance = logistic(known.taken(x @ mean))
    squares, variances = known.means(np.square(known.packed - chance)), known.means(chance * (1 - chance))
    for part, soft, square, variance in zip(known.parts, known.soft, squares, variances, strict=True):
        if soft:
            found[part] = min(max(variance / max(square, 1e-9), 1.0), _MOST_NARROW)
    return found
