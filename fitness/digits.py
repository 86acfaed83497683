"""The digits of scikit-learn as a fitness for the raw weights of a small perceptron."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from typing import Any, Literal

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from evomerge.errors import ConfigError, FitnessError
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.utils.compiling import compiled

Array = NDArray[np.float32]
Part = Literal["train", "test"]

PIXELS = 64
CLASSES = 10
SHARE = 0.8
"""Of the images that are for training: the first ones, unshuffled, as in the public code of M2N2."""

ITEMS = "digits/acc"
"""Name of the metric and of its per-item values: 1 where the image's digit was named, else 0."""


class DigitsFitness:
    """Share of images whose digit a perceptron of flat weights names; scores arrays, not models.

    The network is ``relu(x W1 + b1) W2 + b2`` on 8 x 8 images with values 0 to 16, unscaled; its weights are W1 (64 x
    hidden, row by row), b1, W2 (hidden x 10) and b2, one after the other: 19,210 numbers with 256 hidden units. All is
    computed in float32, in one batch. This is the first experiment of "Competition and Attraction Improve Model Fusion"
    (arXiv 2508.16204, section 4.1; the paper speaks of MNIST, its public code has these images).

    Per-item values: ``digits/acc``. Metrics: the same on average, and ``digits/odd`` and ``digits/even``, the
    accuracies on odd and on even digits, which MAP-Elites uses as descriptors.

    Args:
        part: ``train``, the first 1,437 images, or ``test``, the other 360.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: no hidden unit.
    """

    def __init__(self, *, part: Part = "train", hidden: int = 256) -> None:
        if hidden < 1:
            raise ConfigError(f"fitness.hidden is {hidden}", "at least 1")
        self._part, self._hidden = part, hidden
        images, self._labels = load_images(part)
        # The row of ones meets the biases, which follow their matrix in the flat weights.
        self._images = np.concatenate([images, np.ones((len(images), 1), np.float32)], axis=1)
        self._room = threading.local()
        self._odd = int((self._labels % 2).sum())

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """``accuracy``, to be maximised."""
        return (Objective("accuracy"),)

    @property
    def size(self) -> int:
        """How many weights the network has."""
        return weight_count(self._hidden)

    def check(self) -> None:
        """Nothing can be wrong that the constructor did not see."""

    def cautions(self) -> list[str]:
        """None: the test images are others."""
        return []

    def fingerprint(self) -> str:
        """Hash of the images, the labels, the network's shape and the version of scikit-learn."""
        digest = hashlib.sha256(f"{sklearn.__version__} {self._part} {self._hidden}".encode())
        digest.update(self._images.tobytes())
        digest.update(self._labels.tobytes())
        return f"sha256:{digest.hexdigest()}"

    def forward(self, weights: Array) -> Array:
        """Logits of shape ``(images, 10)``, float32; the thread's next call overwrites them."""
        split = (PIXELS + 1) * self._hidden
        units, logits = self._outputs()
        np.matmul(self._images, weights[:split].reshape(PIXELS + 1, self._hidden), out=units)
        np.maximum(units, 0, out=units)
        np.matmul(units, weights[split:-CLASSES].reshape(self._hidden, CLASSES), out=logits)
        logits += weights[-CLASSES:]
        return logits

    def _outputs(self) -> tuple[Array, Array]:
        """What a forward writes to, the same memory for all of a thread's: fresh pages would take longer than it."""
        if not hasattr(self._room, "outputs"):
            shapes = (len(self._images), self._hidden), (len(self._images), CLASSES)
            self._room.outputs = np.empty(shapes[0], np.float32), np.empty(shapes[1], np.float32)
        outputs: tuple[Array, Array] = self._room.outputs
        return outputs

    def score(self, weights: Array) -> Scores:
        """Score flat weights, float32 of shape ``(size,)``.

        Raises:
            FitnessError: another number of weights, or outputs that are not finite.
        """
        started = time.perf_counter()
        if weights.shape != (self.size,):
            raise FitnessError(f"weights of shape {weights.shape} were given", f"the network has {self.size}")
        forward_at = time.perf_counter()
        logits = self.forward(weights)
        seconds = time.perf_counter() - forward_at
        right = np.empty(len(logits))
        odd, even = _mark(logits, self._labels, right)
        if odd < 0:
            raise FitnessError("the network's outputs are not finite", "finite float32 weights, not too large")
        count = len(right)
        accuracy = (odd + even) / count
        metrics = {ITEMS: accuracy, "digits/odd": odd / self._odd, "digits/even": even / (count - self._odd)}
        other = time.perf_counter() - started - seconds
        return Scores({"accuracy": accuracy}, metrics, {ITEMS: right}, {"model": seconds, "other": other})


@compiled
def _mark(logits: Any, labels: Any, right: Any) -> tuple[Any, Any]:
    """Into `right`: 1 where the first of the largest logits is the label's, else 0.

    Returns:
        How many odd and how many even labels are right; below zero where a logit is not finite.
    """
    flat, odd, all_right, wild = logits.reshape(-1), np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(labels)):
        first = np.uintp(i * CLASSES)  # an index that may be negative costs as much as the rest
        largest, named = flat[first], 0
        for k in range(1, CLASSES):
            other = flat[first + np.uintp(k)]
            larger = other > largest
            largest = other if larger else largest
            named = k if larger else named
        is_right = np.int64(named == labels[i])
        right[i] = is_right
        odd += (labels[i] & 1) * is_right
        all_right += is_right
    for value in flat:
        wild |= np.int64(value - value != 0)
    return (np.int64(-1), np.int64(-1)) if wild else (odd, all_right - odd)


def weight_count(hidden: int) -> int:
    """How many weights a network with `hidden` units has."""
    return (PIXELS + 1) * hidden + (hidden + 1) * CLASSES


def load_images(part: Part) -> tuple[Array, NDArray[np.int64]]:
    """Images of shape ``(images, 64)``, float32 from 0 to 16, and their digits, in scikit-learn's order.

    Raises:
        ConfigError: no such part.
    """
    if part not in ("train", "test"):
        raise ConfigError(f"fitness.part is {part!r}", "train or test")
    images, labels = _all()
    count = int(len(images) * SHARE)
    chosen = slice(None, count) if part == "train" else slice(count, None)
    return images[chosen].astype(np.float32), labels[chosen].astype(np.int64)


@functools.cache
def _all() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All images and digits, read once."""
    images, labels = load_digits(return_X_y=True)
    return images, labels
