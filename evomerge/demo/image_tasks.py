"""Eight small image tasks, made of the handwritten digits that scikit-learn ships: which digit, in eight conditions.

The conditions are made from the same 1,797 originals, which makes them less unlike than the eight data sets of the
literature; of each original all images are for training, or for the search, or held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 16
"""Pixels of a side; images are RGB."""

LABELS = tuple("0123456789")

PARTS = ("train", "search", "held_out")
_SHARES = (0.5, 0.25)  # of training and of the search; the rest is held out

Images = NDArray[np.uint8]
"""Of shape (images, SIZE, SIZE, 3)."""
Grey = NDArray[np.float64]
"""From 0 to 1, of shape (SIZE, SIZE)."""


@dataclass(frozen=True)
class TaskImages:
    """Images of one task for one purpose.

    Attributes:
        images: of shape (images, SIZE, SIZE, 3), uint8.
        labels: the digits, of shape (images,).
    """

    images: Images
    labels: NDArray[np.int64]

    def first(self, count: int) -> TaskImages:
        """The first so many; they are in no order."""
        return TaskImages(self.images[:count], self.labels[:count])


def _noisy(image: Grey, rng: np.random.Generator) -> Grey:
    found: Grey = image + rng.normal(0, 0.35, image.shape)
    return found


def _shifted(image: Grey, rng: np.random.Generator) -> Grey:
    return np.roll(image, tuple(rng.integers(-3, 4, 2)), axis=(0, 1))


def _covered(image: Grey, rng: np.random.Generator) -> Grey:
    found, (row, column) = image.copy(), rng.integers(2, SIZE - 8, 2)
    found[row : row + 6, column : column + 6] = 0.5
    return found


def _faint(image: Grey, rng: np.random.Generator) -> Grey:
    return 0.35 + 0.12 * image + 0.3 * float(rng.random())


def _blurred(image: Grey, rng: np.random.Generator) -> Grey:
    from scipy.ndimage import gaussian_filter

    found: Grey = gaussian_filter(image, float(rng.uniform(1.5, 2.5)))
    return found


def _tilted(image: Grey, rng: np.random.Generator) -> Grey:
    from scipy.ndimage import rotate

    found: Grey = rotate(image, float(rng.choice([-1, 1]) * rng.uniform(25, 50)), reshape=False, order=1)
    return found


def _small(image: Grey, rng: np.random.Generator) -> Grey:
    found, (row, column) = np.zeros_like(image), rng.integers(SIZE // 4 - 1, SIZE // 4 + 2, 2)
    found[row : row + SIZE // 2, column : column + SIZE // 2] = image[::2, ::2]
    return found


TASKS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "plain": lambda image, rng: image,
    "noisy": _noisy,
    "shifted": _shifted,
    "covered": _covered,
    "faint": _faint,
    "blurred": _blurred,
    "tilted": _tilted,
    "small": _small,
}
"""What becomes of an image."""


def draw_tasks(rng: np.random.Generator) -> dict[str, dict[str, TaskImages]]:
    """By task and part of `PARTS` its images: of each original, whatever the task, all are in one part."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    given, digits = load_digits(return_X_y=True)
    originals = zoom(given.reshape(-1, 8, 8) / 16, (1, SIZE / 8, SIZE / 8), order=1)
    ends = np.cumsum([round(share * len(originals)) for share in _SHARES])
    parts = dict(zip(PARTS, np.split(rng.permutation(len(originals)), ends), strict=True))
    found: dict[str, dict[str, TaskImages]] = {}
    for task, change in TASKS.items():
        grey = np.clip(np.stack([change(image, rng) for image in originals]), 0, 1)
        images = np.repeat(np.round(255 * grey).astype(np.uint8)[..., None], 3, axis=-1)
        found[task] = {part: TaskImages(images[own], digits[own].astype(np.int64)) for part, own in parts.items()}
    return found


def write_images(folder: Path, own: TaskImages) -> None:
    """Write PNG files, in a folder for each class."""
    from PIL import Image

    for name in LABELS:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(own.images, own.labels, strict=True)):
        Image.fromarray(image).save(folder / LABELS[label] / f"{number:04d}.png")


def write_masked(folder: Path, images: Images, masks: NDArray[np.uint8]) -> None:
    """Write PNG files: ``images/NAME.png``, and ``masks/NAME.png`` with a number for each pixel."""
    from PIL import Image

    for name, own in (("images", images), ("masks", masks)):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(own):
            Image.fromarray(image).save(folder / name / f"{number:04d}.png")
