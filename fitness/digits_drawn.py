"""Drawn digits judged by a small network trained on scikit-learn's: features, and whether the digit is right."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, FitnessError
from fitness.digits import load_images

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]

_SIDE = 8
_LARGEST = 16.0  # of scikit-learn's pixels


class DigitFeatures:
    """Features of images of digits for ``kid`` and ``fid``: the hidden layer of a network that tells digits apart.

    Args:
        hidden: its units.
        seed: of its training, on the training images of `fitness.digits`.

    Raises:
        ConfigError: no units.
    """

    def __init__(self, hidden: int = 64, seed: int = 0) -> None:
        if hidden < 1:
            raise ConfigError(f"hidden is {hidden}", "at least 1")
        self._hidden, self._seed = hidden, seed

    def __call__(self, images: Images) -> Floats:
        """Float64 of shape (images, hidden); images are uint8 of shape (images, 8, 8, channels)."""
        network = _network(self._hidden, self._seed)
        found: Floats = np.maximum(_pixels(images) @ network.coefs_[0] + network.intercepts_[0], 0.0)
        return found

    def fingerprint(self) -> str:
        """A hash of the network."""
        return _digest(self._hidden, self._seed)


class DigitScorer:
    """How likely the digit that a prompt asks for is to be the one that was drawn, by the same network.

    Args:
        hidden, seed: as of `DigitFeatures`.
    """

    direction: ClassVar[str] = "maximize"

    def __init__(self, hidden: int = 64, seed: int = 0) -> None:
        self._features = DigitFeatures(hidden, seed)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Floats:
        """Probabilities of shape (images,).

        Raises:
            FitnessError: a prompt without a digit.
        """
        own = self._features
        shares: Floats = _network(own._hidden, own._seed).predict_proba(_pixels(images))
        return shares[np.arange(len(images)), [_digit(prompt) for prompt in prompts]]

    def fingerprint(self) -> str:
        """A hash of the network."""
        return self._features.fingerprint()


def _digit(prompt: str) -> int:
    found = next((int(letter) for letter in prompt if letter in "0123456789"), None)
    if found is None:
        raise FitnessError(f"prompt {prompt[:60]!r} has no digit", "prompts such as 'a 7'")
    return found


def _pixels(images: Images) -> Floats:
    """The pixels, from 0 to 1, of shape (images, 64)."""
    if images.ndim != 4 or images.shape[1:3] != (_SIDE, _SIDE):
        raise FitnessError(f"images are of shape {images.shape}", f"(images, {_SIDE}, {_SIDE}, channels)")
    found: Floats = images.mean(axis=3, dtype=np.float64).reshape(len(images), -1) / 255.0
    return found


@functools.cache
def _network(hidden: int, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    images, labels = load_images("train")
    network = MLPClassifier((hidden,), alpha=1e-3, max_iter=60, tol=0.0, n_iter_no_change=1000, random_state=seed)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could be trained for longer
        return network.fit(images.astype(np.float64) / _LARGEST, labels)


@functools.cache
def _digest(hidden: int, seed: int) -> str:
    network = _network(hidden, seed)
    return hashlib.sha256(b"".join(np.round(own, 6).tobytes() for own in network.coefs_)).hexdigest()
