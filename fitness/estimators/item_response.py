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

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.kind_fit import fit_kind
from fitness.estimators.latent_steps import Array, sweep


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

    def take(self, columns: NDArray[np.bool_] | NDArray[np.intp] | slice) -> ItemParameters:
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
        return self.without_each([(models, part)])[0]

    def without_each(self, cases: Sequence[tuple[Sequence[int], NDArray[np.bool_]]]) -> list[ItemParameters]:
        """`without` for each of several models and items; the same whichever are asked for together."""
        found = [self._left(list(models), np.flatnonzero(part)) for models, part in cases]
        precision = np.concatenate([each[1] for each in found])
        linear = np.concatenate([each[2] for each in found])
        covariance = np.ascontiguousarray(sweep(np.ascontiguousarray(precision.transpose(1, 2, 0))).transpose(2, 0, 1))
        mean = (covariance @ linear[..., None])[..., 0]
        ends = np.cumsum([len(each[1]) for each in found]).tolist()
        return [
            replace(items, mean=mean[begin:end], covariance=covariance[begin:end])
            for (items, _, _), begin, end in zip(found, [0, *ends[:-1]], ends, strict=True)
        ]

    def _left(self, models: list[int], part: NDArray[np.intp]) -> tuple[ItemParameters, Array, Array]:
        """Some items, and what is left of their precision and of that times their means without some models."""
        items, linear = self.items.take(part), self.linear[part]
        precision = self.precision[part].reshape(len(part), -1)
        weights, targets = (each[models][:, part].T for each in (self.weights, self.targets))
        for binary, x in self.abilities.items():
            own = items.binary == binary
            precision[own] -= weights[own] @ self.seconds[binary][models].reshape(len(models), -1)
            linear[own] -= targets[own] @ x[models]
        return items, precision.reshape(self.precision[part].shape), linear


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
    mean, covariance = np.empty((columns, size)), np.empty((columns, size, size))
    precision, linear = np.empty_like(covariance), np.empty_like(mean)
    weights, targets = np.empty((models, columns)), np.empty((models, columns))
    abilities, seconds = {}, {}
    for kind in dict.fromkeys(binary.tolist()):
        own = binary == kind
        ends = np.cumsum([m.stretch.stop - m.stretch.start for m in metrics if m.binary == kind]).tolist()
        parts = [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        found = fit_kind(scaled[:, own], kind, parts, dimensions)
        abilities[kind], seconds[kind], noise[own] = found.x, found.xx, found.noise
        mean[own], covariance[own] = found.mean, found.covariance
        precision[own], linear[own] = found.precision, found.linear
        weights[:, own], targets[:, own] = found.weights, found.targets
    items = ItemParameters(mean, covariance, binary, noise, centre, scale)
    return Fit(items, abilities, seconds, precision, linear, weights, targets)
