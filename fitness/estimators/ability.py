"""The abilities of models, told from their values of some items, and what these make of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.item_response import ItemParameters
from fitness.estimators.latent_steps import Array, inverse, logistic, moments, solved

_STEPS = 25
_LEVEL = 0.5  # variance of what a model is better at in a whole metric than its abilities say
_LOOSE = 1.0  # variance of the weights of endpoints


class Case(NamedTuple):
    """A model, seen on some items of a kind.

    Attributes:
        seen: the items that were run.
        values: what they gave, shape ``(columns,)``.
        unseen: the others.
        levels: of the seen and of the unseen items: those of a level have in common what abilities do not tell.
        endpoints: abilities of which the model's is a sum, shape ``(E, D)``, with unknown weights.
    """

    seen: ItemParameters
    values: Array
    unseen: ItemParameters
    levels: tuple[NDArray[np.int64], NDArray[np.int64]]
    endpoints: Array | None = None


class Told(NamedTuple):
    """What unseen items would give.

    Attributes:
        values: expected, shape ``(columns,)``.
        noise: of each the variance that it shares with no other.
        moves: how the values change with the ability, shape ``(columns, D)``.
        covariance: of the ability.
    """

    values: Array
    noise: Array
    moves: Array
    covariance: Array


class _Items(NamedTuple):
    """Items of `R` models, as many for each; a slope of 1 on an ability of its own for each item's level.

    Attributes:
        mean: of slopes and intercept, shape ``(R, columns, A + 1)`` with all A abilities.
        covariance: of those that are not known for sure, shape ``(R, columns, (D + 1)²)``.
        kept: which of all these are, shape ``(D + 1,)``.
        binary: whether they are right or wrong; otherwise `precision` is that of their noise.
        precision: shape ``(R, columns)``.
    """

    mean: Array
    covariance: Array
    kept: NDArray[np.int64]
    binary: bool
    precision: Array

    def unsure(self, xx: Array) -> Array:
        """The variance of ``β·x`` that comes from not knowing ``β``, shape ``(R, columns)``."""
        own = xx[:, self.kept[:, None], self.kept]
        return np.asarray((self.covariance @ own.reshape(len(xx), -1, 1))[..., 0])

    def marginal(self, xx: Array) -> tuple[Array, Array]:
        """Slopes and intercepts as they look when they are not known for sure: flatter, or noisier (MacKay, 1992).

        Returns:
            These, and the precision of the noise.
        """
        unsure = self.unsure(xx)
        if self.binary:
            return self.mean / np.sqrt(1 + np.pi / 8 * unsure)[..., None], self.precision
        return self.mean, 1 / (1 / self.precision + unsure)

    def of(self, which: NDArray[np.intp]) -> _Items:
        """Those of some models."""
        return self._replace(mean=self.mean[which], covariance=self.covariance[which], precision=self.precision[which])


def tell(
    seen: ItemParameters,
    values: Array,
    unseen: ItemParameters,
    centre: Array,
    levels: tuple[NDArray[np.int64], NDArray[np.int64]],
    endpoints: Array | None = None,
) -> Told:
    """What a model would give on unseen items of a kind.

    Args:
        seen, values, unseen, levels, endpoints: as for `Case`.
        centre: the ability that is expected, shape ``(D,)``.
    """
    return tell_each([Case(seen, values, unseen, levels, endpoints)], centre)[0]


def tell_each(cases: Sequence[Case], centre: Array) -> list[Told]:
    """What each of several models would give on unseen items of one kind; the same whichever are told together.

    Args:
        cases: the models; those with as many items, seen and unseen, are told at once.
        centre: the ability that is expected, shape ``(D,)``.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, case in enumerate(cases):
        ends = 0 if case.endpoints is None else len(case.endpoints)
        groups.setdefault((len(case.values), len(case.unseen.mean), ends, _levels(case)), []).append(number)
    found: dict[int, Told] = {}
    for (_, _, _, levels), numbers in groups.items():
        found |= zip(numbers, _told([cases[number] for number in numbers], centre, levels), strict=True)
    return [found[number] for number in range(len(cases))]


def _levels(case: Case) -> int:
    return int(case.levels[1].max(initial=case.levels[0].max(initial=0))) + 1


def _told(cases: Sequence[Case], centre: Array, levels: int) -> list[Told]:
    """`tell_each` of cases that have as many items and levels."""
    seen, unseen = [case.seen for case in cases], [case.unseen for case in cases]
    expected, precision = centre, np.eye(len(centre))
    if cases[0].endpoints is not None:
        ends = [case.endpoints for case in cases if case.endpoints is not None]
        seen = [items.through(own) for items, own in zip(seen, ends, strict=True)]
        unseen = [items.through(own) for items, own in zip(unseen, ends, strict=True)]
        expected, precision = np.full(len(ends[0]), 1.0 / len(ends[0])), np.eye(len(ends[0])) / _LOOSE
    expected = np.append(expected, np.zeros(levels))
    precision = np.diag([*np.diag(precision), *[1 / _LEVEL] * levels])
    values = np.array([(c.values - own.centre) / own.scale for c, own in zip(cases, seen, strict=True)])
    before = _items(seen, [case.levels[0] for case in cases], levels)
    ability, spread = _abilities(before, values, expected, precision)
    x, xx = moments(ability, spread)
    others = _items(unseen, [case.levels[1] for case in cases], levels)
    own, slopes = others.unsure(xx), others.mean[..., :-1]
    level = (others.mean @ x[..., None])[..., 0]
    if not level.shape[1] or not others.binary:
        scale, middle = (np.array([getattr(items, name) for items in unseen]) for name in ("scale", "centre"))
        noise = np.square(scale) * (1 / others.precision + own)
        return [*map(Told, middle + scale * level, noise, scale[..., None] * slopes, spread)]
    variance = own + np.einsum("ria,ria->ri", slopes @ spread, slopes)
    chance = logistic(level / np.sqrt(1 + np.pi / 8 * variance))  # MacKay, 1992
    steep = chance * (1 - chance)  # what is not known of an item is in the chance of its answer already
    return [*map(Told, chance, steep, steep[..., None] * slopes, spread)]


def ability_of(items: ItemParameters, values: Array, prior_mean: Array, prior_precision: Array) -> tuple[Array, Array]:
    """The ability that answered like this: mean ``(D,)`` and covariance ``(D, D)`` of its posterior.

    Args:
        items: those that were run, of one kind.
        values: what they gave, shape ``(columns,)``.
        prior_mean: shape ``(D,)``.
        prior_precision: shape ``(D, D)``.
    """
    scaled = ((values - items.centre) / items.scale)[None]
    mean, spread = _abilities(_items([items], [], 0), scaled, prior_mean, prior_precision)
    return mean[0], spread[0]


def _items(items: Sequence[ItemParameters], levels: Sequence[NDArray[np.int64]], count: int) -> _Items:
    """Items of several models, as many for each, with the level of each."""
    known = _stacked(items, "mean")
    models, columns, size = known.shape
    mean = np.zeros((models, columns, size + count))
    mean[..., : size - 1], mean[..., -1] = known[..., :-1], known[..., -1]
    if count:
        np.put_along_axis(mean, (size - 1 + np.array(levels))[..., None], 1.0, axis=2)
    covariance = _stacked(items, "covariance").reshape(models, columns, size * size)
    binary = bool(items[0].binary.any())
    kept = np.array([*range(size - 1), size + count - 1])
    return _Items(mean, covariance, kept, binary, _stacked(items, "precision"))


def _stacked(items: Sequence[ItemParameters], name: str) -> Array:
    """What the items of several models have, one model after the other; of models with the very same items a view."""
    first = getattr(items[0], name)
    if all(each is items[0] for each in items):
        return np.broadcast_to(first, (len(items), *first.shape))
    return np.array([getattr(each, name) for each in items])


def _abilities(items: _Items, scaled: Array, prior_mean: Array, prior_precision: Array) -> tuple[Array, Array]:
    """The abilities of `R` models: means ``(R, A)`` and covariances ``(R, A, A)`` of their posteriors.

    Args:
        items: that were run.
        scaled: what they gave, in units of their metric, shape ``(R, columns)``.
        prior_mean, prior_precision: of all abilities, shapes ``(A,)`` and ``(A, A)``.
    """
    models, towards = len(scaled), prior_precision @ prior_mean
    found = np.tile(prior_mean, (models, 1))
    covariance = np.tile(inverse(prior_precision), (models, 1, 1))
    moving, some = np.arange(models), items
    mean, spread = found.copy(), covariance.copy()
    for _ in range(_STEPS):
        _, xx = moments(mean, spread)
        slopes, weights = some.marginal(xx)
        targets = weights * scaled
        if items.binary:
            half = np.einsum("ria,ria->ri", slopes @ xx, slopes)
            half = 0.5 * np.sqrt(np.maximum(half, 1e-12))
            targets = weights * (scaled - 0.5)
            weights = weights * (0.25 * np.tanh(half) / half)  # Jaakkola and Jordan, 2000, eq. 10
        gram = slopes.transpose(0, 2, 1) @ (slopes * weights[..., None])
        linear = towards + (targets[:, None] @ slopes)[:, 0, :-1] - gram[:, :-1, -1]
        new, spread = solved(prior_precision + gram[:, :-1, :-1], linear)
        going = np.abs(new - mean).max(axis=1) >= 1e-3
        mean = found[moving] = new
        covariance[moving] = spread
        if not going.any():
            break
        if not going.all():
            moving, some, scaled = moving[going], some.of(np.flatnonzero(going)), scaled[going]
            mean, spread = mean[going], spread[going]
    if items.binary:  # Laplace: the variances of the bound are too small
        x, xx = moments(found, covariance)
        slopes, _ = items.marginal(xx)
        chance = logistic((slopes @ x[..., None])[..., 0])
        slopes = slopes[..., :-1]
        gram = slopes.transpose(0, 2, 1) @ (slopes * (items.precision * chance * (1 - chance))[..., None])
        covariance = inverse(prior_precision + gram)
    return found, covariance
