"""Which images a task has, and their masks: from folders and tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError, nearest
from fitness._classification.tables import cell_of, read_rows
from fitness._classification.terms import SplitTerm
from fitness._documents import Document
from fitness._images.pixels import mask_of, size_of
from fitness._images.sources import SUFFIXES, ImageItem, check_images, chosen_places, hash_of, image_of, is_image
from fitness._segmentation.prompts import Prompts, prompts_of
from fitness._segmentation.terms import SegmentationTerm

Mask = NDArray[np.uint16]
"""Numbers of classes, of shape (height, width)."""


@dataclass(frozen=True)
class MaskedItem:
    """An image that has not been decoded, and what is where on it.

    Attributes:
        image: the image.
        mask: of the image's size, as the files have it.
        prompts: of a task with prompts, for each class that the mask has.
    """

    image: ImageItem
    mask: Mask
    prompts: Prompts | None = None


@dataclass(frozen=True)
class MaskedSource:
    """The images of one task.

    Attributes:
        items: in order.
        documents: what identifies each.
        left_out: how many have nothing that could be asked for.
    """

    items: tuple[MaskedItem, ...]
    documents: tuple[Document, ...]
    left_out: int = 0

    @property
    def mask_bytes(self) -> int:
        """Of memory that masks take."""
        return sum(item.mask.nbytes for item in self.items)


def check_place(term: SegmentationTerm, key: str) -> None:
    """Raise `FitnessError` for a folder or table that is not there, or a folder without ``images`` and ``masks``."""
    check_images(term.images, key)
    path = Path(term.images).expanduser()
    if path.is_file():
        return
    for name in ("images", "masks"):
        if not (path / name).is_dir():
            allowed = f"{path.name}/images/NAME.png with {path.name}/masks/NAME.png, or a table"
            raise FitnessError(f"{key}: {term.images} has no folder {name}", allowed)
    if term.prompts:
        raise FitnessError(
            f"{key} names a folder, and prompts a column", "a table with the column", "leave prompts out"
        )


def read_source(term: SegmentationTerm, key: str, split: SplitTerm, seed: int) -> MaskedSource:
    """Find a task's images, and read their masks.

    An image lies in one part, by a hash of its bytes: however often it is there.

    Args:
        term: the task.
        key: where it stands in the configuration.
        split: which part of the images counts.
        seed: of the draw of a `limit`.

    Raises:
        FitnessError: nothing is there, it cannot be read, an image has no mask or one of another size, or no image is
            left.
    """
    key = f"{key}.images"
    check_place(term, key)
    path = Path(term.images).expanduser()
    rows = list(_of_folder(path, key) if path.is_dir() else _of_table(path, term, key))
    hashes = [hash_of(image) for image, _, _ in rows]
    chosen = chosen_places(hashes, [""] * len(rows), term, key, split, seed)
    items, documents = list[MaskedItem](), list[Document]()
    for place in chosen:
        image, file, given = rows[place]
        mask = mask_of(file)
        if mask.shape != (size := size_of(image)):
            raise FitnessError(f"{file.where} is of size {mask.shape}, {image.where} of {size}", "masks of their sizes")
        prompts = prompts_of(term, mask, given, image.where) if term.prompt else None
        if prompts is None or len(prompts.classes):
            items.append(MaskedItem(image, mask, prompts))
            asked = hashlib.sha256(hashes[place].encode() + mask.tobytes()).hexdigest()
            documents.append(Document(asked, hashes[place]))
    if not items:
        raise FitnessError(f"{key}: no mask has anything but background ({term.ground})", "things to be found")
    return MaskedSource(tuple(items), tuple(documents), len(chosen) - len(items))


def _of_folder(folder: Path, key: str) -> Iterator[tuple[ImageItem, ImageItem, Any]]:
    masks = {path.stem: path for path in sorted((folder / "masks").iterdir()) if is_image(path)}
    images = [path for path in sorted((folder / "images").iterdir()) if is_image(path)]
    if not images:
        raise FitnessError(f"{key}: {folder / 'images'} has no images", f"files: {', '.join(SUFFIXES)}")
    for path in images:
        if path.stem not in masks:
            what = f"{key}: {folder / 'masks'} has no mask for {path.name}"
            raise FitnessError(what, f"{path.stem}.png" if not masks else nearest(path.stem, masks))
        yield ImageItem(str(path), "", path), ImageItem(str(masks[path.stem]), "", masks[path.stem]), None


def _of_table(path: Path, term: SegmentationTerm, key: str) -> Iterator[tuple[ImageItem, ImageItem, Any]]:
    whose = key.removesuffix("images")
    for where, row in read_rows(str(path), key):
        found = [
            image_of(cell_of(row, column, where, f"{whose}{name}"), where, f"{where}, {column}", column, path.parent)
            for name, column in (("image", term.image), ("mask", term.mask))
        ]
        yield found[0], found[1], cell_of(row, term.prompts, where, f"{whose}prompts") if term.prompts else None
