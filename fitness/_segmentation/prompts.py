"""What a model that segments one thing at a time is asked for: boxes and points, of the data or made of the masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from fitness._segmentation.terms import SegmentationTerm


@dataclass(frozen=True)
class Prompts:
    """What is asked of one image, a thing after the other.

    Attributes:
        classes: the number in the mask of each.
        places: of each a box (left, top, right, bottom), float64 of shape (things, 4); or points (x, y), of shape
            (things, points, 2). In pixels of the image.
        given: points of each that count, where others fill up; shape (things, points). ``None`` for boxes.
    """

    classes: tuple[int, ...]
    places: NDArray[np.float64]
    given: NDArray[np.bool_] | None = None


def prompts_of(term: SegmentationTerm, mask: NDArray[np.uint16], value: Any, where: str) -> Prompts:
    """The prompts for every class that a mask has, but for the background and what is ignored.

    Args:
        term: the task.
        mask: of shape (height, width).
        value: what the data has for the image: prompts of its one class, or a mapping from classes; also as JSON.
        where: names the image.

    Raises:
        FitnessError: the data has none for a class, or something else.
    """
    out = {*term.ignored, term.ground}
    classes = tuple(number for number in np.unique(mask).tolist() if number not in out)
    if not term.prompts:
        make = box_of if term.prompt == "box" else point_of
        made = [make(mask == number) for number in classes]
        return _stacked(term, classes, made)
    value = _read(value, where, term.prompts)
    if not isinstance(value, Mapping):
        if len(classes) > 1:
            what = (
                f"{where}: its {term.prompts} is of one thing, and its mask has classes {', '.join(map(str, classes))}"
            )
            raise FitnessError(what, "a mapping from each class to its own: {1: ..., 2: ...}")
        value = dict.fromkeys(map(str, classes), value)
    by_class = {str(own): each for own, each in value.items()}
    for number in classes:
        if str(number) not in by_class:
            raise FitnessError(
                f"{where}: its {term.prompts} has nothing for class {number}", "one for each of its mask"
            )
    return _stacked(term, classes, [_numbers(term, by_class[str(number)], mask.shape, where) for number in classes])


def box_of(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The smallest box around a region: its first and last column and row, as MedSAM has them (arXiv 2304.12306).

    Args:
        region: of shape (height, width), true somewhere.

    Returns:
        Left, top, right, bottom; float64 of shape (4,).
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def point_of(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The point of a region that is furthest from its edge, the first of equals: where SAM's study of prompts clicks.

    That is section 7.1 of arXiv 2304.02643; pixels beyond the image are outside.

    Args:
        region: of shape (height, width), true somewhere.

    Returns:
        x and y; float64 of shape (1, 2).
    """
    from scipy.ndimage import distance_transform_edt

    inside = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return np.array([[column, row]], dtype=np.float64)


def _stacked(term: SegmentationTerm, classes: tuple[int, ...], made: list[NDArray[np.float64]]) -> Prompts:
    if term.prompt == "box":
        return Prompts(classes, np.array(made, dtype=np.float64).reshape(len(classes), 4))
    most = max((len(own) for own in made), default=0)
    places, given = np.zeros((len(classes), most, 2)), np.zeros((len(classes), most), dtype=np.bool_)
    for number, own in enumerate(made):
        places[number, : len(own)], given[number, : len(own)] = own, True
    return Prompts(classes, places, given)


def _read(value: Any, where: str, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise FitnessError(f"{where}: its {column} is {value[:60]!r}", "JSON such as [3, 4, 20, 30]") from error


def _numbers(term: SegmentationTerm, value: Any, size: tuple[int, ...], where: str) -> NDArray[np.float64]:
    allowed = "left, top, right, bottom: [3, 4, 20, 30]" if term.prompt == "box" else "points x, y: [[3, 4], [5, 6]]"
    try:
        found = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    right = found.shape == (4,) if term.prompt == "box" else found.ndim == 2 and found.shape[1:] == (2,) and len(found)
    if not right or not np.isfinite(found).all():
        raise FitnessError(f"{where}: its {term.prompts} has {str(value)[:60]!r}", allowed)
    xy = found.reshape(-1, 2)
    if (xy < 0).any() or (xy[:, 0] > size[1]).any() or (xy[:, 1] > size[0]).any():
        raise FitnessError(
            f"{where}: its {term.prompts} has {str(value)[:60]!r}, outside of the image",
            f"0 to {size[1]} and {size[0]}",
        )
    if term.prompt == "box" and (found[0] > found[2] or found[1] > found[3]):
        raise FitnessError(f"{where}: its {term.prompts} has {str(value)[:60]!r}", allowed)
    return found
