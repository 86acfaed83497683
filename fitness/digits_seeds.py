"""Perceptrons to start a search over the weights of digits from: random ones and trained specialists."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from fitness import _threefry
from fitness.digits import CLASSES, PIXELS, load_images, weight_count

Array = NDArray[np.float32]


class RandomSeeds:
    """Weights drawn from a normal distribution, as the searches from scratch of the public code of M2N2 start.

    Args:
        seed: of the weights.
        count: how many networks.
        std: standard deviation of a weight.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: no network, or a negative standard deviation.
    """

    def __init__(self, *, seed: int, count: int = 2, std: float = 0.01, hidden: int = 256) -> None:
        if count < 1 or std < 0 or seed < 0:
            raise ConfigError(f"seeds: count {count}, std {std}, seed {seed}", "count at least 1, the others 0 or more")
        self._seed, self._count, self._std, self._hidden = seed, count, std, hidden

    def arrays(self) -> list[Array]:
        """Flat weights in the order of `fitness.digits.DigitsFitness`, one array per network."""
        rng = np.random.default_rng(self._seed)
        size = weight_count(self._hidden)
        std = np.float32(self._std)
        return [std * rng.standard_normal(size, dtype=np.float32) for _ in range(self._count)]


class Specialists:
    """Two networks, trained briefly on the training images of digits 0 to 4 and of digits 5 to 9.

    Full-batch Adam at its usual moments, as in the public code of M2N2: 10 steps at learning rate 0.003 leave networks
    that are far from good even on their own digits. How well the line between the two does depends on the weights
    that they began with: over seeds 0 to 5 its best point names 57 to 77 % of the test images. ``generator: jax`` and
    ``seed: 42`` is the pair of the published curves, up to rounding (57.8 %).

    Args:
        seed: of the weights before training.
        generator: that draws them: ``numpy``, or ``jax`` for the numbers of JAX up to 0.4.
        steps: of training.
        rate: learning rate.
        std: standard deviation of a weight before training.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(
        self,
        *,
        seed: int,
        generator: Literal["numpy", "jax"] = "numpy",
        steps: int = 10,
        rate: float = 0.003,
        std: float = 0.01,
        hidden: int = 256,
    ) -> None:
        if steps < 0 or rate <= 0:
            raise ConfigError(f"seeds: steps {steps}, rate {rate}", "steps 0 or more, rate above 0")
        if generator not in ("numpy", "jax"):
            raise ConfigError(f"seeds: generator {generator!r}", "numpy or jax")
        self._random = RandomSeeds(seed=seed, count=2, std=std, hidden=hidden)
        self._steps, self._rate, self._hidden = steps, rate, hidden
        self._jax = (seed, std) if generator == "jax" else None

    def arrays(self) -> list[Array]:
        """Flat weights in the order of `fitness.digits.DigitsFitness`, one array per network."""
        images, labels = load_images("train")
        first, second = self._random.arrays() if self._jax is None else self._drawn_by_jax(*self._jax)
        low = labels < CLASSES // 2
        return [
            train(first, images[low], labels[low], self._hidden, self._steps, self._rate),
            train(second, images[~low], labels[~low], self._hidden, self._steps, self._rate),
        ]

    def _drawn_by_jax(self, seed: int, std: float) -> list[Array]:
        size = weight_count(self._hidden)
        return [np.float32(std) * _threefry.normal(key, size) for key in _threefry.split(_threefry.key(seed), 2)]


def train(weights: Array, images: Array, labels: NDArray[np.int64], hidden: int, steps: int, rate: float) -> Array:
    """Full-batch Adam (arXiv 1412.6980, algorithm 1) on the mean cross entropy; the weights given stay as they are."""
    weights = weights.copy()
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        slope = gradient(weights, images, labels, hidden)
        mean += np.float32(0.1) * (slope - mean)
        square += np.float32(0.001) * (slope * slope - square)
        unbiased, size = mean / np.float32(1 - 0.9**step), square / np.float32(1 - 0.999**step)
        weights -= np.float32(rate) * unbiased / (np.sqrt(size) + np.float32(1e-8))
    return weights


def gradient(weights: Array, images: Array, labels: NDArray[np.int64], hidden: int) -> Array:
    """Gradient of the mean cross entropy by the flat weights, float32."""
    split, end = PIXELS * hidden, (PIXELS + 1) * hidden
    inner, outer = weights[:split].reshape(PIXELS, hidden), weights[end:-CLASSES].reshape(hidden, CLASSES)
    units = np.maximum(images @ inner + weights[split:end], 0)
    logits = units @ outer + weights[-CLASSES:]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error: NDArray[Any] = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= np.float32(len(labels))
    back = (error @ outer.T) * (units > 0)
    parts = (images.T @ back, back.sum(axis=0), units.T @ error, error.sum(axis=0))
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)
