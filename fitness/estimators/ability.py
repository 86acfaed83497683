"""The ability of one model, told from its answers to items that are known."""

from __future__ import annotations

import numpy as np

from fitness.estimators.item_response import ItemParameters
from fitness.estimators.latent_steps import Array, abilities_given, bound, inverse, logistic, moments

_STEPS = 25


def ability_of(items: ItemParameters, values: Array, prior_mean: Array, prior_precision: Array) -> tuple[Array, Array]:
    """The ability that answered like this: mean ``(D,)`` and covariance ``(D, D)`` of its posterior.

    Args:
        items: those that were run.
        values: what they gave, shape ``(columns,)``.
        prior_mean: shape ``(D,)``.
        prior_precision: shape ``(D, D)``.
    """
    scaled = ((values - items.centre) / items.scale)[None]
    seen = np.ones_like(scaled, dtype=bool)
    mean, spread = prior_mean[None], inverse(prior_precision)[None]
    for _ in range(_STEPS):
        x, xx = moments(mean, spread)
        slopes, second, precision = _marginal(items, xx[0])
        weights, targets = bound(xx, second, scaled, seen, items.binary, precision)
        new, spread = abilities_given(slopes, second, weights, targets, prior_mean, prior_precision)
        moved = float(np.abs(new - mean).max())
        mean = new
        if moved < 1e-3:
            break
    x, xx = moments(mean, spread)
    slopes, second, precision = _marginal(items, xx[0])
    chance = logistic(x @ slopes.T)
    weights = np.where(items.binary, chance * (1 - chance), precision)  # Laplace: the bound's are too narrow
    _, spread = abilities_given(slopes, second, weights, targets, prior_mean, prior_precision)
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
        np.where(items.binary, 1.0, 1 / (1 / items.precision + unsure)),
    )
