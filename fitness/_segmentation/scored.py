"""From masks and outputs to Dice, IoU, accuracy and loss of an image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fitness._segmentation.labels import NOT_COUNTED
from fitness._segmentation.terms import SegmentationTerm

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ImageScore:
    """What a model makes of one image.

    Attributes:
        values: by metric.
        overlap: pixels of each class in both mask and prediction; shape (classes,).
        wanted, told: pixels of each class in the mask, and in the prediction, of those that count.
    """

    values: Mapping[str, float]
    overlap: Counts
    wanted: Counts
    told: Counts


def score_classes(gold: NDArray[np.int64], logits: torch.Tensor, background: int | None) -> ImageScore:
    """The score of an image of which every pixel is given a class.

    Dice of a class is ``2 I / (A + B)`` and IoU ``I / (A + B - I)``, of I pixels in both and A and B in mask and
    prediction (Dice 1945; Jaccard 1912). Those of an image are the means over the classes that either has, as nnU-Net
    takes them; 1 where only the background is left in both.

    Args:
        gold: classes of pixels, shape (height, width); those of `NOT_COUNTED` do not count.
        logits: of shape (classes, rows, columns); stretched to the mask's size by bilinear interpolation, as
            transformers does it.
        background: class that counts neither in Dice nor in IoU; ``None`` for none.
    """
    stretched = stretch(logits, gold.shape)
    right = torch.from_numpy(gold).to(stretched.device)
    # `NOT_COUNTED` is no index.
    loss = torch.nn.functional.cross_entropy(stretched[None], right[None], ignore_index=NOT_COUNTED)
    predicted = stretched.argmax(0).cpu().numpy()
    counted = gold != NOT_COUNTED
    truth, guess, classes = gold[counted], predicted[counted], len(logits)
    overlap = np.bincount(truth[truth == guess], minlength=classes)
    wanted, told = np.bincount(truth, minlength=classes), np.bincount(guess, minlength=classes)
    either = [own for own in np.flatnonzero(wanted + told).tolist() if own != background]
    return ImageScore(
        {
            **_means(overlap[either], wanted[either], told[either]),
            "accuracy": float(overlap.sum() / len(truth)),
            "loss": float(loss),
        },
        overlap,
        wanted,
        told,
    )


def score_things(gold: Sequence[NDArray[np.bool_]], logits: torch.Tensor, counted: NDArray[np.bool_]) -> ImageScore:
    """The score of an image in which things were asked for: the means over them.

    Args:
        gold: of each where it is, shape (height, width).
        logits: of each, of that size: positive inside; shape (things, height, width).
        counted: pixels that count, shape (height, width).
    """
    inside = torch.from_numpy(np.stack(gold)).to(logits.device)[:, torch.from_numpy(counted)]
    own = logits[:, torch.from_numpy(counted)]
    losses = torch.nn.functional.binary_cross_entropy_with_logits(own, inside.to(own.dtype))
    predicted = own > 0
    overlap, wanted, told = (each.sum(1).cpu().numpy() for each in (inside & predicted, inside, predicted))
    return ImageScore(
        {
            **_means(overlap, wanted, told),
            "accuracy": float((inside == predicted).double().mean()),
            "loss": float(losses),
        },
        overlap,
        wanted,
        told,
    )


def stretch(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Logits of shape (classes, rows, columns) at another size, bilinearly, float32."""
    found: torch.Tensor = torch.nn.functional.interpolate(
        logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False
    )[0]
    return found


def by_class(scores: Sequence[ImageScore], names: Sequence[str], background: int | None) -> dict[str, float]:
    """IoU of each class over all images' pixels together, and its mean over those that masks have: ``miou``."""
    overlap, wanted, told = (
        np.sum([getattr(own, part) for own in scores], axis=0) for part in ("overlap", "wanted", "told")
    )
    found = {
        f"iou {_plain(names[own])}": float(overlap[own] / (wanted[own] + told[own] - overlap[own]))
        for own in np.flatnonzero(wanted).tolist()
        if own != background
    }
    return {**found, "miou": float(np.mean(list(found.values()))) if found else 1.0}


def kept_items(
    term: SegmentationTerm, scores: Sequence[ImageScore], also: Collection[str] = ("dice", "iou")
) -> dict[str, NDArray[np.float64]]:
    """Values of images that are reported: of metrics that count and of `also`, by ``task/metric``."""
    names = dict.fromkeys([*(metric.name for metric in term.metrics), *also])
    return {f"{term.name}/{name}": np.array([own.values[name] for own in scores]) for name in names}


def _means(overlap: Counts, wanted: Counts, told: Counts) -> dict[str, float]:
    if not len(overlap):
        return {"dice": 1.0, "iou": 1.0}
    both = wanted + told
    return {"dice": float((2 * overlap / both).mean()), "iou": float((overlap / (both - overlap)).mean())}


def _plain(name: str) -> str:
    return " ".join(name.replace("/", "_").split()) or "-"
