"""The ability of one model, told from its values of some items, and what it makes of the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fitness.estimators.item_response import ItemParameters
from fitness.estimators.latent_steps import Array, abilities_given, bound, inverse, logistic, moments

_STEPS = 25
_LEVEL = 0.5  # variance of what a model is better at in a whole metric than its abilities say
_LOOSE = 1.0  # variance of the weights of endpoints


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
        seen: the items that were run.
        values: what they gave, shape ``(columns,)``.
        unseen: the others.
        centre: the ability that is expected, shape ``(D,)``.
        levels: of the seen and of the unseen items: those of a level have in common what abilities do not tell.
        endpoints: abilities of which the model's is a sum, shape ``(E, D)``, with unknown weights.
    """
    size = seen.mean.shape[1] - 1
    expected, precision = centre, np.eye(size)
    if endpoints is not None:
        seen, unseen, size = seen.through(endpoints), unseen.through(endpoints), len(endpoints)
        expected, precision = np.full(size, 1.0 / size), np.eye(size) / _LOOSE
    count = int(levels[1].max(initial=levels[0].max(initial=0))) + 1
    seen, unseen = seen.with_levels(levels[0], count), unseen.with_levels(levels[1], count)
    expected = np.append(expected, np.zeros(count))
    precision = np.diag([*np.diag(precision), *[1 / _LEVEL] * count])
    ability, spread = ability_of(seen, values, expected, precision)
    x, xx = moments(ability[None], spread[None])
    own = np.einsum("iab,ab->i", unseen.covariance, xx[0])
    slopes = unseen.mean[:, :-1]
    level = unseen.mean @ x[0]
    if not len(level) or not unseen.binary[0]:
        noise = np.square(unseen.scale) * (1 / unseen.precision + own)
        return Told(unseen.centre + unseen.scale * level, noise, unseen.scale[:, None] * slopes, spread)
    variance = own + np.einsum("ia,ab,ib->i", slopes, spread, slopes)
    chance = logistic(level / np.sqrt(1 + np.pi / 8 * variance))  # MacKay, 1992
    steep = chance * (1 - chance)  # what is not known of an item is in the chance of its answer already
    return Told(chance, steep, steep[:, None] * slopes, spread)


def ability_of(items: ItemParameters, values: Array, prior_mean: Array, prior_precision: Array) -> tuple[Array, Array]:
    """The ability that answered like this: mean ``(D,)`` and covariance ``(D, D)`` of its posterior.

    Args:
        items: those that were run, of one kind.
        values: what they gave, shape ``(columns,)``.
        prior_mean: shape ``(D,)``.
        prior_precision: shape ``(D, D)``.
    """
    scaled = ((values - items.centre) / items.scale)[None]
    seen = np.ones_like(scaled, dtype=bool)
    binary = bool(items.binary.any())
    mean, spread = prior_mean[None], inverse(prior_precision)[None]
    for _ in range(_STEPS):
        x, xx = moments(mean, spread)
        slopes, second, precision = _marginal(items, xx[0])
        weights, targets = bound(xx, second, scaled, seen, binary, precision)
        new, spread = abilities_given(slopes, second, weights, targets, prior_mean, prior_precision)
        moved = float(np.abs(new - mean).max())
        mean = new
        if moved < 1e-3:
            break
    if binary:  # Laplace: the variances of the bound are too small
        x, xx = moments(mean, spread)
        slopes, second, _ = _marginal(items, xx[0])
        chance = logistic(x @ slopes.T)
        _, spread = abilities_given(
            slopes, second, items.precision * chance * (1 - chance), targets, prior_mean, prior_precision
        )
    return mean[0], spread[0]


def _marginal(items: ItemParameters, xx: Array) -> tuple[Array, Array, Array]:
    """Items as they look when their own parameters are not known for sure: flatter, or noisier (MacKay, 1992).

    Args:
        xx: of the ability, shape ``(D + 1, D + 1)``.

    Returns:
        Slopes and intercept, their outer products, and the precision of the noise.
    """
    size = len(xx)
    unsure = items.covariance.reshape(-1, size * size) @ xx.reshape(size * size)
    flat = np.where(items.binary, 1 / np.sqrt(1 + np.pi / 8 * unsure), 1.0)
    slopes = items.mean * flat[:, None]
    return (
        slopes,
        slopes[:, :, None] * slopes[:, None, :],
        np.where(items.binary, items.precision, 1 / (1 / items.precision + unsure)),
    )
