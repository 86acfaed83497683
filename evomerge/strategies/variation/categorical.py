"""A distribution over choices that learns from ranks: the categorical half of CatCMA.

Hamano et al., "CatCMA: Stochastic Optimization for Mixed-Category Problems" (arXiv 2405.09962); its learning rate is
that of Akimoto et al., "Adaptive Stochastic Natural Gradient Method for One-Shot Neural Architecture Search"
(arXiv 1905.08537).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ALPHA = 1.5  # trust in a direction that persists (ASNG, section 4)
_ALL_LIKELIEST = 0.73  # the chance that a sample takes the likeliest choice everywhere never exceeds this


class Categorical:
    """Independent variables, each with a probability for every choice; all choices are equally likely at first.

    Args:
        counts: how many choices each variable has; two or more.
        shares: the probabilities at first, shape ``(choices,)`` of each variable; none is below the margin.
    """

    def __init__(self, counts: Sequence[int], shares: Sequence[Array] | None = None) -> None:
        self.probabilities = [np.full(count, 1 / count) for count in counts]
        # No choice is ever given up (CatCMA, section 4.3: the margin).
        least = 1 - _ALL_LIKELIEST ** (1 / max(len(counts), 1))
        self._least = [least / (count - 1) for count in counts]
        if shares is not None:
            self.probabilities = [at_least(np.array(p), low) for p, low in zip(shares, self._least, strict=True)]
        self._freedom = sum(count - 1 for count in counts)
        self._path = np.zeros(self._freedom)
        self._gamma = 0.0
        self._distrust = 1.0  # the step is its inverse

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """Number of the likeliest choice of each variable, the first among equals."""
        return np.array([int(p.argmax()) for p in self.probabilities], dtype=np.int64)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Numbers of choices, of shape ``(count, variables)``."""
        drawn = rng.random((count, len(self.probabilities)))
        columns = [
            np.minimum(np.searchsorted(np.cumsum(p), drawn[:, i], side="right"), len(p) - 1)
            for i, p in enumerate(self.probabilities)
        ]
        return np.array(columns, dtype=np.int64).reshape(len(self.probabilities), count).T

    def learn(self, samples: NDArray[np.int64], weights: Array, acts: NDArray[np.bool_] | None = None) -> None:
        """Move towards `samples`, of shape ``(n, variables)``, by `weights` of shape ``(n,)`` that sum to 1.

        Args:
            acts: in which samples each variable acts, as `samples` in shape; it learns from no other. All for ``None``.
        """
        heavy = np.repeat(weights[:, None], samples.shape[1], axis=1)
        heavy = heavy if acts is None else heavy * acts
        gradients = [
            np.bincount(samples[:, i], weights=heavy[:, i], minlength=len(p)) - heavy[:, i].sum() * p
            for i, p in enumerate(self.probabilities)
        ]
        natural = np.concatenate([_by_root_of_fisher(g, p) for g, p in zip(gradients, self.probabilities, strict=True)])
        length = math.sqrt(float(natural @ natural))
        if length < 1e-30:
            return
        step = 1 / self._distrust
        rate = step / math.sqrt(self._freedom)
        for i, (p, gradient) in enumerate(zip(self.probabilities, gradients, strict=True)):
            self.probabilities[i] = at_least(p + step / length * gradient, self._least[i])
        # ASNG: larger steps while the gradients agree, smaller ones when they are noise; a rate above 1 means nothing.
        self._path = (1 - rate) * self._path + math.sqrt(rate * (2 - rate)) * natural / length
        self._gamma = (1 - rate) ** 2 * self._gamma + rate * (2 - rate)
        self._distrust *= math.exp(rate * (self._gamma - float(self._path @ self._path) / _ALPHA))
        self._distrust = max(self._distrust, 1 / math.sqrt(self._freedom))


def _by_root_of_fisher(gradient: Array, p: Array) -> Array:
    """The gradient of one variable's free probabilities in coordinates where a step's length is its divergence.

    The Fisher matrix of all but the last choice is ``diag(1/p) + 1/p_K``; its root, as in appendix B of ASNG.
    """
    free, root = gradient[:-1], np.sqrt(p[:-1])
    return np.asarray(free / root + root * free.sum() / (p[-1] + math.sqrt(p[-1])))


def at_least(p: Array, least: float) -> Array:
    """Probabilities that sum to 1, none below `least`; the excess is taken from those above it."""
    raised = np.maximum(p, least)
    above = raised - least
    fitted = raised - (raised.sum() - 1) * above / above.sum()
    return np.asarray(fitted / fitted.sum())
