"""What items are like, learnt from models scored on all or some of them: a latent model of right and other answers.

A model has an ability ``θ`` of ``D`` numbers, an item slopes ``a`` and an intercept ``d`` (``-b`` of item response
theory). Values of 0 and 1 follow the two-parameter logistic model ``P(1) = σ(a·θ + d)``, those of other metrics the
linear factor model ``y = a·θ + d + noise``, in units of the metric's standard deviation. Each of the two kinds has
abilities of its own: numbers such as log-likelihoods tell so much of an ability that shared ones would follow them, and
right and wrong answers do not.

Both are conditionally Gaussian, the logistic one under the bound of Jaakkola and Jordan (2000), and are fitted together
by variational EM (Bishop, 1999, for the linear one): abilities have the prior N(0, I), the items of a metric a common
Gaussian prior whose mean and variances are estimated with them, so that a handful of models is enough to begin with:
what cannot be told of an item is taken from the others of its metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.latent_steps import Array, abilities_given, bound, items_given, logistic, moments, solved

_STEPS = 50
_TOLERANCE = 2e-3
_PRIOR_MODELS = 4.0
_MOST_NARROW = 4.0
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

    def with_levels(self, levels: NDArray[np.int64], count: int) -> ItemParameters:
        """With an ability more for each of `count` levels, of slope 1 on the items of that level and 0 on the others.

        Args:
            levels: shape ``(columns,)``.
            count: how many there are.
        """
        items, size = self.mean.shape
        mean, covariance = np.zeros((items, size + count)), np.zeros((items, size + count, size + count))
        kept = [*range(size - 1), size + count - 1]
        mean[:, kept] = self.mean
        mean[np.arange(items), size - 1 + levels] = 1.0
        covariance[:, np.array(kept)[:, None], kept] = self.covariance
        return replace(self, mean=mean, covariance=covariance)

    def second(self) -> Array:
        """``E[β βᵀ]`` of slopes and intercept, shape ``(columns, D + 1, D + 1)``."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True)
class Fit:
    """A fitted latent model.

    Attributes:
        items: what the items are like.
        abilities: by kind (whether binary) those of the models it was fitted to, shape ``(K, D + 1)``, the last 1.
        seconds: by kind ``E[x xᵀ]`` of these, shape ``(K, D + 1, D + 1)``.
        precision, linear: of the items' posteriors, shapes ``(columns, D + 1, D + 1)`` and ``(columns, D + 1)``.
        weights, targets: what each value adds to these, shape ``(K, columns)``, 0 where an item was not run.
    """

    items: ItemParameters
    abilities: Mapping[bool, Array]
    seconds: Mapping[bool, Array]
    precision: Array
    linear: Array
    weights: Array
    targets: Array

    def without(self, models: Sequence[int], part: NDArray[np.bool_]) -> ItemParameters:
        """Some items as they are without some models, the abilities of the others staying what they are.

        Args:
            models: which of those that were fitted to.
            part: shape ``(columns,)``.
        """
        left_out = list(models)
        items = self.items.take(part)
        precision, linear = self.precision[part], self.linear[part]
        weights, targets = self.weights[left_out][:, part], self.targets[left_out][:, part]
        for binary, x in self.abilities.items():
            own = items.binary == binary
            precision[own] -= np.einsum("ki,kab->iab", weights[:, own], self.seconds[binary][left_out])
            linear[own] -= targets[:, own].T @ x[left_out]
        mean, covariance = solved(precision, linear)
        return replace(items, mean=mean, covariance=covariance)


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
    size = dimensions + 1
    binary, centre, scale = np.empty(columns, dtype=bool), np.empty(columns), np.empty(columns)
    for metric in metrics:
        binary[metric.stretch], centre[metric.stretch] = metric.binary, metric.centre
        scale[metric.stretch] = metric.scale
    scaled = (values - centre) / scale
    noise = np.ones(columns)
    precision, linear = np.empty((columns, size, size)), np.empty((columns, size))
    weights, targets = np.empty((models, columns)), np.empty((models, columns))
    abilities, seconds = {}, {}
    for kind in dict.fromkeys(binary.tolist()):
        own = binary == kind
        ends = np.cumsum([m.stretch.stop - m.stretch.start for m in metrics if m.binary == kind]).tolist()
        parts = [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        found = _fit_kind(scaled[:, own], kind, parts, dimensions)
        abilities[kind], seconds[kind], noise[own] = found.x, found.xx, found.noise
        precision[own], linear[own] = found.precision, found.linear
        weights[:, own], targets[:, own] = found.weights, found.targets
    mean, covariance = solved(precision, linear)
    items = ItemParameters(mean, covariance, binary, noise, centre, scale)
    return Fit(items, abilities, seconds, precision, linear, weights, targets)


class _KindFit(NamedTuple):
    x: Array
    xx: Array
    noise: Array
    precision: Array
    linear: Array
    weights: Array
    targets: Array


def _fit_kind(values: Array, binary: bool, parts: Sequence[slice], dimensions: int) -> _KindFit:
    """Fit the items of one kind; `parts` are the columns of each metric."""
    models, columns = values.shape
    seen = ~np.isnan(values)
    scaled = np.where(seen, values, 0.0)
    mean, abilities = _start(scaled, seen, binary, parts, dimensions)
    covariance = np.tile(np.diag([0.1] * (dimensions + 1)), (columns, 1, 1))
    noise = np.ones(columns)
    x, xx = moments(abilities, np.zeros((models, dimensions, dimensions)))
    old = mean
    for _ in range(_STEPS):
        second = covariance + mean[:, :, None] * mean[:, None, :]
        weights, targets = bound(xx, second, scaled, seen, binary, noise)
        x, xx = moments(*abilities_given(mean, second, weights, targets, np.zeros(dimensions), np.eye(dimensions)))
        x, xx, mean, covariance = _standardised(x, xx, mean, covariance)
        precision, linear = items_given(*_priors(mean, covariance, parts), x, xx, weights, targets)
        mean, covariance = solved(precision, linear)
        if binary:
            noise = _narrowness(x, mean, scaled, seen, parts)
        else:
            noise = _noise(x, xx, mean, covariance, scaled, seen, parts)
        if np.abs(mean - old).max() < _TOLERANCE * max(1.0, np.abs(old).max()):
            break
        old = mean
    return _KindFit(x, xx, noise, precision, linear, weights, targets)


def _standardised(x: Array, xx: Array, mean: Array, covariance: Array) -> tuple[Array, Array, Array, Array]:
    """The same model, abilities with mean 0 and variance 1: EM alone takes long to come to these (Liu et al., 1998)."""
    centre = x[:, :-1].mean(axis=0)
    second = np.diagonal(xx, axis1=1, axis2=2)[:, :-1].mean(axis=0)
    scale = np.sqrt(np.maximum(second - np.square(centre), 1e-12))
    size = len(centre) + 1
    of_abilities, of_items = np.eye(size), np.eye(size)
    of_abilities[:-1, :-1], of_abilities[:-1, -1] = np.diag(1 / scale), -centre / scale
    of_items[:-1, :-1], of_items[-1, :-1] = np.diag(scale), centre
    return (
        x @ of_abilities.T,
        of_abilities @ xx @ of_abilities.T,
        mean @ of_items.T,
        of_items @ covariance @ of_items.T,
    )


def _start(
    scaled: Array, seen: NDArray[np.bool_], binary: bool, parts: Sequence[slice], dimensions: int
) -> tuple[Array, Array]:
    """From the singular vectors of what is left of the values without the items' means."""
    counts = seen.sum(axis=0)
    level = np.empty(scaled.shape[1])
    for part in parts:
        total = max(int(counts[part].sum()), 1)
        overall = (scaled[:, part].sum() + 0.5 * binary) / (total + binary)
        level[part] = (scaled[:, part].sum(axis=0) + overall) / (counts[part] + 1)
    rest = np.where(seen, scaled - level, 0.0)
    left, sizes, right = np.linalg.svd(rest, full_matrices=False)
    kept = min(dimensions, len(sizes))
    abilities, mean = np.zeros((len(scaled), dimensions)), np.zeros((scaled.shape[1], dimensions + 1))
    root = np.sqrt(len(scaled))
    abilities[:, :kept] = left[:, :kept] * root
    steep = 1 / np.maximum(level * (1 - level), 0.05) if binary else np.ones(len(level))
    mean[:, :kept] = (right[:kept].T * sizes[:kept] / root) * steep[:, None]
    inside = np.clip(level, 0.02, 0.98)
    mean[:, -1] = np.log(inside / (1 - inside)) if binary else level
    return mean, abilities


def _priors(mean: Array, covariance: Array, parts: Sequence[slice]) -> tuple[Array, Array]:
    """By column the mean and precision of its metric's parameters, from all of the metric's items."""
    size = mean.shape[1]
    usual = np.array([_SLOPE_VARIANCE] * (size - 1) + [_INTERCEPT_VARIANCE])
    means, precisions = np.empty_like(mean), np.empty_like(mean)
    for part in parts:
        own = mean[part]
        spread = np.diagonal(covariance[part], axis1=1, axis2=2)
        centre = own.sum(axis=0) / (len(own) + 1)
        variance = (np.square(own - centre) + spread).sum(axis=0) + _PRIOR_MODELS * usual
        means[part] = centre
        precisions[part] = (len(own) + _PRIOR_MODELS) / variance
    return means, precisions


def _noise(
    x: Array, xx: Array, mean: Array, covariance: Array, scaled: Array, seen: NDArray[np.bool_], parts: Sequence[slice]
) -> Array:
    """The precision of the noise of each item, shrunk to that of its metric."""
    size = x.shape[1] ** 2
    expected = xx.reshape(len(xx), size) @ (covariance + mean[:, :, None] * mean[:, None, :]).reshape(-1, size).T
    squares = np.where(seen, np.square(scaled) - 2 * scaled * (x @ mean.T) + expected, 0.0).sum(axis=0)
    counts = seen.sum(axis=0)
    found = np.ones(len(mean))
    for part in parts:
        common = max(squares[part].sum() / max(int(counts[part].sum()), 1), 1e-6)
        found[part] = (counts[part] + _PRIOR_MODELS) / (squares[part] + _PRIOR_MODELS * common)
    return found


def _narrowness(x: Array, mean: Array, scaled: Array, seen: NDArray[np.bool_], parts: Sequence[slice]) -> Array:
    """How many answers a chance is worth, by column: the variance of answers over that of the chances of a metric."""
    expected = logistic(x @ mean.T)
    found = np.ones(len(mean))
    for part in parts:
        own, told, chance = seen[:, part], scaled[:, part], expected[:, part]
        if np.isin(told[own], (0.0, 1.0)).all():
            continue
        squares, variance = np.square(told - chance)[own].mean(), (chance * (1 - chance))[own].mean()
        found[part] = min(max(variance / max(squares, 1e-9), 1.0), _MOST_NARROW)
    return found
