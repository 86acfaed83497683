"""Eight small image tasks, made of images that scikit-learn ships: its handwritten digits and its two photographs.

Five are of digits: which one, as it is, inverted, turned by a quarter and mirrored, and in which corner it is; three of
patches of the photographs: which of the two, which quarter of it, in which order its colours are. They are derived from
the same images, which makes them less unlike than the eight data sets of the literature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 16
"""Pixels of a side; images are RGB."""

Images = NDArray[np.uint8]
"""Of shape (images, SIZE, SIZE, 3)."""

DIGITS = tuple("0123456789")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "digits": DIGITS,
    "inverted": DIGITS,
    "turned": DIGITS,
    "mirrored": DIGITS,
    "corner": ("upper_left", "upper_right", "lower_left", "lower_right"),
    "photo": ("china", "flower"),
    "quarter": ("upper_left", "upper_right", "lower_left", "lower_right"),
    "colours": ("rgb", "gbr", "brg"),
}
"""The tasks, and the classes of each."""

LABELS = tuple(f"{task}_{name}" for task, names in CLASSES.items() for name in names)
"""Of the head that all models have: every task has rows of its own."""

PARTS = ("train", "search", "held_out")
_SHARES = (0.5, 0.25)  # of training and of the search; the rest is held out


@dataclass(frozen=True)
class TaskImages:
    """Images of one task for one purpose.

    Attributes:
        images: of shape (images, SIZE, SIZE, 3), uint8.
        labels: numbers among the task's `CLASSES`, of shape (images,).
    """

    images: Images
    labels: NDArray[np.int64]

    def first(self, count: int) -> TaskImages:
        """The first so many; they are in no order."""
        return TaskImages(self.images[:count], self.labels[:count])


def draw_tasks(rng: np.random.Generator) -> dict[str, dict[str, TaskImages]]:
    """By task and part of `PARTS` its images: of each original, whatever the task, all are in one part."""
    digits, numbers = _digits()
    patches, photos, quarters = _patches()
    corners, orders = rng.integers(0, 4, len(digits)), rng.integers(0, 3, len(patches))
    of_digits = {
        "digits": TaskImages(digits, numbers),
        "inverted": TaskImages(255 - digits, numbers),
        "turned": TaskImages(np.rot90(digits, axes=(1, 2)), numbers),
        "mirrored": TaskImages(digits[:, :, ::-1], numbers),
        "corner": TaskImages(_in_corners(digits, corners), corners),
    }
    of_patches = {
        "photo": TaskImages(patches, photos),
        "quarter": TaskImages(patches, quarters),
        "colours": TaskImages(_in_orders(patches, orders), orders),
    }
    found: dict[str, dict[str, TaskImages]] = {task: {} for task in CLASSES}
    for tasks in (of_digits, of_patches):
        originals = len(next(iter(tasks.values())).labels)
        ends = np.cumsum([round(share * originals) for share in _SHARES])
        for part, own in zip(PARTS, np.split(rng.permutation(originals), ends), strict=True):
            for task, every in tasks.items():
                found[task][part] = TaskImages(every.images[own], every.labels[own])
    return found


def write_images(folder: Path, task: str, own: TaskImages) -> None:
    """Write PNG files, in a folder for each class, called as in `LABELS`."""
    from PIL import Image

    names = [f"{task}_{name}" for name in CLASSES[task]]
    for name in names:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(own.images, own.labels, strict=True)):
        Image.fromarray(image).save(folder / names[label] / f"{number:04d}.png")


def _digits() -> tuple[Images, NDArray[np.int64]]:
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    given, numbers = load_digits(return_X_y=True)
    large = zoom(given.reshape(-1, 8, 8), (1, SIZE / 8, SIZE / 8), order=1)
    grey = np.clip(large * (255 / 16), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), numbers.astype(np.int64)


def _patches() -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Patches that do not overlap, the photograph of each, and its quarter."""
    from sklearn.datasets import load_sample_image

    found: list[Any] = []
    photos, quarters = list[int](), list[int]()
    for number, name in enumerate(CLASSES["photo"]):
        photo: Images = load_sample_image(f"{name}.jpg")
        rows, columns = (length // SIZE for length in photo.shape[:2])
        for row in range(rows):
            for column in range(columns):
                found.append(photo[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE])
                photos.append(number)
                quarters.append(2 * (row >= rows / 2) + (column >= columns / 2))
    return np.stack(found), np.array(photos), np.array(quarters)


def _in_corners(images: Images, corners: NDArray[np.int64]) -> Images:
    """Images at half their size, each in a corner."""
    found = np.zeros_like(images)
    half = SIZE // 2
    for target, image, corner in zip(found, images[:, ::2, ::2], corners, strict=True):
        row, column = half * (corner // 2), half * (corner % 2)
        target[row : row + half, column : column + half] = image
    return found


def _in_orders(images: Images, orders: NDArray[np.int64]) -> Images:
    """Images with their colours moved on by so many places."""
    return np.stack([np.roll(image, -order, axis=-1) for image, order in zip(images, orders, strict=True)])


def columns_of(task: str) -> Sequence[int]:
    """Which of `LABELS` are a task's, in the order of its classes."""
    return [LABELS.index(f"{task}_{name}") for name in CLASSES[task]]
