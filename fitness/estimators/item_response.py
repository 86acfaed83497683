"""What items are like, learnt from models scored on all or some of them: a latent model of right and other answers.

A model has an ability ``θ`` of ``D`` numbers, an item slopes ``a`` and an intercept ``d`` (``-b`` of item response
theory). Values of 0 and 1 follow the two-parameter logistic model ``P(1) = σ(a·θ + d)``, those of other metrics the
linear factor model ``y = a·θ + d + noise`` in the same latent space, in units of the metric's standard deviation.

Both are conditionally Gaussian, the logistic one under the bound of Jaakkola and Jordan (2000), and are fitted together
by variational EM (Bishop, 1999, for the linear one): abilities have the prior N(0, I), the items of a metric a common
Gaussian prior whose mean and variances are estimated with them, so that a handful of models is enough to begin with:
what cannot be told of an item is taken from the others of its metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.latent_steps import Array, abilities_given, bound, items_given, moments

_STEPS = 60
_TOLERANCE = 2e-3
_PRIOR_MODELS = 4.0
_SLOPE_VARIANCE, _INTERCEPT_VARIANCE = 0.5, 2.0


@dataclass(frozen=True)
class Metric:
    """Columns of one metric.

    Attributes:
        stretch: where they stand.
        binary: whether all known values are 0 or 1.
        centre, scale: of its values; 0 and 1 where they are binary.
    """

    stretch: slice
    binary: bool
    centre: float
    scale: float


@dataclass(frozen=True)
class ItemParameters:
    """What is known of the items: Gaussian posteriors of slopes and intercept, one row for an item.

    Attributes:
        mean: shape ``(columns, D + 1)``, the intercept last.
        covariance: shape ``(columns, D + 1, D + 1)``.
        binary: which columns are right or wrong.
        precision: of the noise of the others, in units of their scale; 1 where binary.
        centre, scale: of the values of each column.
    """

    mean: Array
    covariance: Array
    binary: NDArray[np.bool_]
    precision: Array
    centre: Array
    scale: Array

    def take(self, columns: NDArray[np.bool_] | slice) -> ItemParameters:
        """Those of some columns."""
        return ItemParameters(*(getattr(self, name)[columns] for name in self.__dataclass_fields__))

    def through(self, abilities: Array) -> ItemParameters:
        """With slopes on combinations of abilities, ``θ = abilitiesᵀ λ``, in place of those on abilities.

        Args:
            abilities: shape ``(E, D)``.
        """
        wide = np.zeros((len(abilities) + 1, self.mean.shape[1]))
        wide[:-1, :-1], wide[-1, -1] = abilities, 1.0
        covariance = wide @ self.covariance @ wide.T
        return ItemParameters(self.mean @ wide.T, covariance, self.binary, self.precision, self.centre, self.scale)

    def second(self) -> Array:
        """``E[β βᵀ]`` of slopes and intercept, shape ``(columns, D + 1, D + 1)``."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True)
class Fit:
    """A fitted latent model.

    Attributes:
        items: what the items are like.
        prior_mean, prior_precision: of each column's parameters, from the other items of its metric.
        abilities: of the models it was fitted to, shape ``(K, D + 1)``, the last 1.
        seconds: ``E[x xᵀ]`` of these, shape ``(K, D + 1, D + 1)``.
        weights: shape ``(K, columns)``, 0 where an item was not run; of the quadratic bound.
        targets: likewise; of its linear part.
    """

    items: ItemParameters
    prior_mean: Array
    prior_precision: Array
    abilities: Array
    seconds: Array
    weights: Array
    targets: Array

    def without(self, model: int) -> ItemParameters:
        """The items as they are without a model, the others' abilities staying what they are."""
        weights = np.delete(self.weights, model, axis=0)
        targets = np.delete(self.targets, model, axis=0)
        mean, covariance = items_given(
            self.prior_mean,
            self.prior_precision,
            np.delete(self.abilities, model, axis=0),
            np.delete(self.seconds, model, axis=0),
            weights,
            targets,
        )
        old = self.items
        return ItemParameters(mean, covariance, old.binary, old.precision, old.centre, old.scale)


def metrics_of(values: Array, stretches: Sequence[slice]) -> list[Metric]:
    """How the values of each metric are modelled.

    Args:
        values: shape ``(K, columns)``, NaN where an item was not run.
    """
    found = []
    for stretch in stretches:
        known = values[:, stretch][~np.isnan(values[:, stretch])]
        binary = bool(np.isin(known, (0.0, 1.0)).all())
        spread = float(known.std()) if len(known) and not binary else 1.0
        found.append(Metric(stretch, binary, 0.0 if binary else float(known.mean()), spread or 1.0))
    return found


def fit_items(values: Array, metrics: Sequence[Metric], dimensions: int) -> Fit:
    """Fit the latent model.

    Args:
        values: shape ``(K, columns)``, NaN where an item was not run.
        metrics: of `metrics_of`.
        dimensions: D.
    """
    models, columns = values.shape
    seen = ~np.isnan(values)
    binary, centre, scale = np.empty(columns, dtype=bool), np.empty(columns), np.empty(columns)
    for metric in metrics:
        binary[metric.stretch], centre[metric.stretch] = metric.binary, metric.centre
        scale[metric.stretch] = metric.scale
    scaled = np.where(seen, (values - centre) / scale, 0.0)
    mean, abilities = _start(scaled, seen, binary, metrics, dimensions)
    covariance = np.tile(np.diag([0.1] * (dimensions + 1)), (columns, 1, 1))
    precision = np.ones(columns)
    spread = np.zeros((models, dimensions, dimensions))
    x, xx = moments(abilities, spread)
    prior_mean, prior_precision = _priors(mean, covariance, metrics)
    old = mean
    for _ in range(_STEPS):
        second = covariance + mean[:, :, None] * mean[:, None, :]
        weights, targets = bound(xx, second, scaled, seen, binary, precision)
        abilities, spread = abilities_given(mean, second, weights, targets, np.zeros(dimensions), np.eye(dimensions))
        x, xx = moments(abilities, spread)
        weights, targets = bound(xx, second, scaled, seen, binary, precision)
        mean, covariance = items_given(prior_mean, prior_precision, x, xx, weights, targets)
        prior_mean, prior_precision = _priors(mean, covariance, metrics)
        if not binary.all():
            precision = _precisions(x, xx, mean, covariance, scaled, seen, metrics)
        if np.abs(mean - old).max() < _TOLERANCE * max(1.0, np.abs(old).max()):
            break
        old = mean
    items = ItemParameters(mean, covariance, binary, precision, centre, scale)
    return Fit(items, prior_mean, prior_precision, x, xx, weights, targets)


def _start(
    scaled: Array, seen: NDArray[np.bool_], binary: NDArray[np.bool_], metrics: Sequence[Metric], dimensions: int
) -> tuple[Array, Array]:
    """From the singular vectors of what is left of the values without the items' means."""
    counts = seen.sum(axis=0)
    level = np.empty(scaled.shape[1])
    for metric in metrics:
        part = metric.stretch
        total = max(int(counts[part].sum()), 1)
        overall = (scaled[:, part].sum() + 0.5 * metric.binary) / (total + metric.binary)
        level[part] = (scaled[:, part].sum(axis=0) + overall) / (counts[part] + 1)
    rest = np.where(seen, scaled - level, 0.0)
    left, sizes, right = np.linalg.svd(rest, full_matrices=False)
    kept = min(dimensions, len(sizes))
    abilities, mean = np.zeros((len(scaled), dimensions)), np.zeros((scaled.shape[1], dimensions + 1))
    root = np.sqrt(len(scaled))
    abilities[:, :kept] = left[:, :kept] * root
    steep = np.where(binary, 1 / np.maximum(level * (1 - level), 0.05), 1.0)
    mean[:, :kept] = (right[:kept].T * sizes[:kept] / root) * steep[:, None]
    inside = np.clip(level, 0.02, 0.98)
    mean[:, -1] = np.where(binary, np.log(inside / (1 - inside)), level)
    return mean, abilities


def _priors(mean: Array, covariance: Array, metrics: Sequence[Metric]) -> tuple[Array, Array]:
    """By column the mean and precision of its metric's parameters, from all of the metric's items."""
    size = mean.shape[1]
    usual = np.array([_SLOPE_VARIANCE] * (size - 1) + [_INTERCEPT_VARIANCE])
    means, precisions = np.empty_like(mean), np.empty_like(mean)
    for metric in metrics:
        own = mean[metric.stretch]
        spread = np.diagonal(covariance[metric.stretch], axis1=1, axis2=2)
        centre = own.sum(axis=0) / (len(own) + 1)
        variance = (np.square(own - centre) + spread).sum(axis=0) + _PRIOR_MODELS * usual
        means[metric.stretch] = centre
        precisions[metric.stretch] = (len(own) + _PRIOR_MODELS) / variance
    return means, precisions


def _precisions(
    x: Array,
    xx: Array,
    mean: Array,
    covariance: Array,
    scaled: Array,
    seen: NDArray[np.bool_],
    metrics: Sequence[Metric],
) -> Array:
    """Of the noise of items with other values than 0 and 1, shrunk to that of their metric."""
    size = x.shape[1] ** 2
    expected = xx.reshape(len(xx), size) @ (covariance + mean[:, :, None] * mean[:, None, :]).reshape(-1, size).T
    squares = np.where(seen, np.square(scaled) - 2 * scaled * (x @ mean.T) + expected, 0.0).sum(axis=0)
    counts = seen.sum(axis=0)
    found = np.ones(len(mean))
    for metric in metrics:
        if not metric.binary:
            part = metric.stretch
            common = max(squares[part].sum() / max(int(counts[part].sum()), 1), 1e-6)
            found[part] = (counts[part] + _PRIOR_MODELS) / (squares[part] + _PRIOR_MODELS * common)
    return found
