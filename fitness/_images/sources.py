"""Which images a task has, and of which class each is: from folders and tables. No image is decoded here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evomerge.errors import FitnessError, nearest
from fitness._classification.tables import in_part
from fitness._classification.terms import SplitTerm
from fitness._documents import Document
from fitness._images.decoding import verify
from fitness._images.terms import ImageTerm
from fitness._text_files import read_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_EXAMPLE = '{"image": "cat.png", "label": "cat"}'
TABLES = (".csv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class ImageItem:
    """An image that has not been decoded.

    Attributes:
        where: for messages: its file, or the table and the row.
        label: its class, as the files call it.
        file: that holds it; ``None`` where `data` does.
        data: of a table that holds images themselves.
    """

    where: str
    label: str
    file: Path | None = None
    data: bytes = b""

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            FitnessError: the file cannot be read.
        """
        if self.file is None:
            return self.data
        try:
            return self.file.read_bytes()
        except OSError as error:
            raise FitnessError(f"{self.where} cannot be read ({error.strerror})", "an image") from error


@dataclass(frozen=True)
class ImageSource:
    """The images of one task that are scored, or learnt from.

    Attributes:
        items: in order.
        classes: of all of the task's images, in order, whatever `items` are.
        documents: what identifies each item.
    """

    items: tuple[ImageItem, ...]
    classes: tuple[str, ...]
    documents: tuple[Document, ...]


def read_source(term: ImageTerm, key: str, split: SplitTerm, seed: int) -> ImageSource:
    """Find a task's images.

    An image lies in one part, by a hash of its bytes: however often it is there.

    Args:
        term: the task.
        key: where it stands in the configuration.
        split: which part of the images counts.
        seed: of the draw of a `limit`.

    Raises:
        FitnessError: nothing is there, it cannot be read, or there is no image.
    """
    key = f"{key}.images"
    found = _entries(term, key)
    classes = tuple(sorted({item.label for item in found}, key=_number_first))
    hashes = [hash_of(item) for item in found]
    places = chosen_places(hashes, [item.label for item in found], term, key, split, seed)
    found, hashes = [found[i] for i in places], [hashes[i] for i in places]
    pairs = zip(found, hashes, strict=True)
    documents = tuple(
        Document(hashlib.sha256(f"{text} {item.label}".encode()).hexdigest(), text) for item, text in pairs
    )
    return ImageSource(tuple(found), classes, documents)


class Limited(Protocol):
    """A task of images, some of them."""

    @property
    def images(self) -> str:
        """Where they are."""

    @property
    def limit(self) -> int | None:
        """So many; ``None`` for all."""


def chosen_places(
    hashes: Sequence[str], labels: Sequence[str], term: Limited, key: str, split: SplitTerm, seed: int
) -> list[int]:
    """The images that lie in the part which counts, and of these as many as the task says, in order.

    Args:
        hashes: of their bytes.
        labels: of every one about as many are drawn.
        term, key: the task, and the key of its images.
        split: which part.
        seed: of the draw.

    Raises:
        FitnessError: none lies in the part.
    """
    chosen = [place for place, text in enumerate(hashes) if in_part(text, split)]
    if not chosen:
        what = f"{key}: none of the images of {term.images} is in part {split.part}"
        raise FitnessError(what, "more images, or another share", "see split and part")
    if term.limit is None:
        return chosen
    return [chosen[i] for i in evenly([labels[place] for place in chosen], term.limit, seed)]


def hash_of(item: ImageItem) -> str:
    """A hash of an image's bytes, which are looked at on this occasion."""
    data = item.read()
    verify(data, item.where)
    return hashlib.sha256(data).hexdigest()


def read_folder(folder: str, key: str) -> list[ImageItem]:
    """All images in a folder and the folders in it, without classes.

    Raises:
        FitnessError: there is no such folder, or no image in it.
    """
    require_there(folder, key)
    found = [ImageItem(str(path), "", path) for path in sorted(Path(folder).expanduser().rglob("*")) if is_image(path)]
    if not found:
        raise FitnessError(f"{key}: {folder} has no images", f"files such as {', '.join(SUFFIXES[:3])}")
    return found


def evenly(labels: Sequence[str], most: int, seed: int) -> list[int]:
    """So many places, drawn without putting back: of every label about as many, in order."""
    rng = np.random.default_rng(seed)
    left = {
        label: list(rng.permutation([i for i, own in enumerate(labels) if own == label]))
        for label in sorted(set(labels))
    }
    found: list[int] = []
    for turn in range(len(labels)):
        for label in sorted(left):
            if turn < len(left[label]) and len(found) < most:
                found.append(int(left[label][turn]))
        if len(found) == most:
            break
    return sorted(found)


def check_images(images: str, key: str) -> None:
    """Raise `FitnessError` for a folder or a table that is not there, or a file that is no table; `key` names it."""
    path = Path(images).expanduser()
    require_there(images, key)
    if path.is_file() and path.suffix not in TABLES:
        raise FitnessError(f"{key} names {images!r}", f"a folder, or a table: {', '.join(TABLES)}")


def require_there(name: str, key: str) -> None:
    """Raise `FitnessError` for a file or folder that is not there, with the nearest of those that are."""
    path = Path(name).expanduser()
    if path.exists():
        return
    above = path.parent
    beside = [own.name for own in above.iterdir() if own.name[0] != "."] if above.is_dir() else []
    allowed = nearest(path.name, beside) if beside else f"there is no folder {above}"
    raise FitnessError(f"{key} names {name!r}, which is not there", allowed)


def _number_first(label: str) -> tuple[bool, int, str]:
    return not label.isdecimal(), int(label) if label.isdecimal() else 0, label


def is_image(path: Path) -> bool:
    """Whether a file is called like an image."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _entries(term: ImageTerm, key: str) -> list[ImageItem]:
    check_images(term.images, key)
    path = Path(term.images).expanduser()
    if path.is_dir():
        return _of_folders(path, key)
    rows = _of_parquet(path, term, key) if path.suffix == ".parquet" else _of_text(path, key)
    found = [_of_row(row, where, path.parent, term, key) for where, row in rows]
    if not found:
        raise FitnessError(f"{key}: {path} has no rows", "an image in each")
    return found


def _of_folders(folder: Path, key: str) -> list[ImageItem]:
    found = []
    for inner in sorted(own for own in folder.iterdir() if own.is_dir() and own.name[0] != "."):
        found += [ImageItem(str(path), inner.name, path) for path in sorted(inner.rglob("*")) if is_image(path)]
    if not found:
        what = f"{key}: {folder} has no images in folders of their classes"
        raise FitnessError(what, f"{folder.name}/CLASS/IMAGE.png for every image", f"files: {', '.join(SUFFIXES)}")
    return found


def _of_text(path: Path, key: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if path.suffix != ".csv":
        return [(line.where, line.row) for line in read_lines(str(path), key, example=_EXAMPLE)]
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FitnessError(f"{key}: {path} cannot be read ({error})", "a CSV file in UTF-8 with a head") from error
    return [(f"{key}: {path}, row {number}", row) for number, row in enumerate(rows, 1)]


def _of_parquet(path: Path, term: ImageTerm, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of a Parquet file; numbers of classes become names where the file has these, as the hub's do."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise FitnessError(f"{key}: {path} cannot be read ({error})", "a Parquet file") from error
    for column in (term.image, term.label):
        if column not in table.column_names:
            raise FitnessError(f"{key}: {path} has no column {column!r}", nearest(column, table.column_names))
    known = _class_names((table.schema.metadata or {}).get(b"huggingface", b"{}"), term.label)
    rows = table.select([term.image, term.label]).to_pylist()
    for row in rows:
        number = row[term.label]
        if isinstance(number, int) and 0 <= number < len(known):
            row[term.label] = known[number]
    return [(f"{key}: {path}, row {number}", row) for number, row in enumerate(rows, 1)]


def _class_names(metadata: bytes, label: str) -> list[str]:
    try:
        names = json.loads(metadata)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _of_row(row: Mapping[str, Any], where: str, folder: Path, term: ImageTerm, key: str) -> ImageItem:
    for column in (term.image, term.label):
        if row.get(column) is None:
            allowed = nearest(column, [str(own) for own in row if own is not None])
            name = "image" if column == term.image else "label"
            raise FitnessError(f"{where} has no {column!r}", allowed, f"set {key.removesuffix('images')}{name}")
    image, label = row[term.image], row[term.label]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise FitnessError(f"{where}: its {term.label} is {label!r}", "the name or the number of a class")
    return image_of(image, where, where, term.image, folder, str(label))


def image_of(value: Any, where: str, data: str, column: str, folder: Path, label: str = "") -> ImageItem:
    """The image that a cell of a table names or holds.

    Args:
        value: a path, bytes, or the hub's mapping of ``bytes`` and ``path``.
        where: the row, for messages.
        data: what the image is called where the cell holds it.
        column: of the cell.
        folder: that paths begin in.
        label: its class.

    Raises:
        FitnessError: it is none of these, or there is no such file.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if isinstance(value.get("bytes"), bytes) else value.get("path")
    if isinstance(value, bytes):
        return ImageItem(data, label, data=value)
    if not isinstance(value, str) or not value:
        raise FitnessError(f"{where}: its {column} is {value!r}", "the path of an image, from the table's folder on")
    path = folder / Path(value).expanduser()
    if not path.is_file():
        raise FitnessError(f"{where}: there is no file {path}", "paths from the table's folder on")
    return ImageItem(str(path), label, path)
