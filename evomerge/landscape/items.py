"""Items of a landscape: how hard each is, and whether a model of a given score gets it right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

Array = NDArray[np.float64]

HARDEST = 30.0  # logits; of a million models that all miss an item it is 14.5
_FARTHEST, _LEAST = 2 * HARDEST, 1e-12


@dataclass(frozen=True)
class ItemModel:
    """The items of one metric that is their mean.

    Items that are right or wrong follow the model of Rasch ("Probabilistic Models for Some Intelligence and Attainment
    Tests", 1960): a model of ability t answers an item of difficulty d with probability ``1 / (1 + exp(d - t))``. The
    ability is the one whose probabilities have the predicted score as their mean, so that only differences between
    difficulties count. Other items are the score, an offset and normal noise, each with its own standard deviation.

    Attributes:
        offsets: difficulties in logits, or offsets from the score; float64 of shape ``(items,)``.
        deviations: standard deviations of the noise, of the same shape; ``None`` of items that are right or wrong.
    """

    offsets: Array
    deviations: Array | None = None

    @staticmethod
    def of(values: Array, scores: Array) -> ItemModel:
        """Items as the models of a run answered them.

        The difficulty of an item is the logit of the share that missed it, with half a model added on either side
        (Haldane 1956; an item that all or none got right has a finite one).

        Args:
            values: of shape ``(models, items)``, without NaN.
            scores: what each model has on average, or is expected to have, shape ``(models,)``.
        """
        if np.isin(values, (0.0, 1.0)).all():
            right = (values.sum(axis=0) + 0.5) / (len(values) + 1)
            difficulties = -logit(right)
            return ItemModel(np.asarray(difficulties - difficulties.mean()))
        rest = values - scores[:, None]
        offsets = rest.mean(axis=0) - rest.mean()
        return ItemModel(offsets, np.asarray((rest - rest.mean(axis=0)).std(axis=0)))

    def expected(self, score: float) -> Array:
        """What each item has on average for a model of this score: a probability of items that are right or wrong."""
        if self.deviations is not None:
            return score + self.offsets
        if not _LEAST < score < 1 - _LEAST:
            return np.full(self.offsets.shape, min(max(score, 0.0), 1.0))
        ability = brentq(lambda t: float(expit(t - self.offsets).mean()) - score, -_FARTHEST, _FARTHEST, xtol=1e-13)
        return np.asarray(expit(ability - self.offsets))

    def drawn(self, score: float, chances: Array, normals: Array) -> Array:
        """What one model of this score has on each item.

        Args:
            score: expected on average.
            chances: uniform random numbers from 0 to 1, of shape ``(items,)``.
            normals: standard normal ones, likewise; of items that are not right or wrong.
        """
        expected = self.expected(score)
        if self.deviations is None:
            return (chances < expected).astype(np.float64)
        return expected + self.deviations * normals

    def error(self, score: float) -> float:
        """The standard deviation that drawing the items gives the score."""
        expected = self.expected(score)
        variances = expected * (1 - expected) if self.deviations is None else self.deviations**2
        return math.sqrt(float(variances.sum())) / len(expected)
