"""Tensors from files, which statistics of models that read no text are made on: images say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from evomerge.protocols import CalibrationTensors
from fitness._calibration_files import FileItems
from fitness._documents import Document

LABELS = "labels"


class TensorItems(FileItems[CalibrationTensors, CalibrationTensors]):
    """Items of safetensors files: an entry for every argument of the model, the items along its first dimension.

    An entry ``labels`` of whole numbers has the right classes: their likelihood counts with ``statistics.labels=text``.

    Args:
        files: paths, for all models; or a mapping of models to theirs.
        items: of each model; drawn from all of its files where these have more.
        seed: of the draw.

    Raises:
        ConfigError: an argument out of its range.
    """

    example = "images.safetensors"

    def _entries(self, file: str) -> list[CalibrationTensors]:
        return _items_of(Path(file))

    def _item(self, entry: CalibrationTensors) -> CalibrationTensors:
        return entry

    def _document(self, entry: CalibrationTensors) -> Document:
        return _document(entry)


def _items_of(path: Path) -> list[CalibrationTensors]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content: dict[str, NDArray[Any]] = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise FitnessError(f"{path} cannot be read ({error})", "safetensors of float32 or whole numbers") from error
    labels = content.pop(LABELS, None)
    every = [*content.values(), *([labels] if labels is not None else [])]
    counts = {len(array) if array.ndim else 0 for array in every}
    if not content or len(counts) > 1 or not counts - {0}:
        shapes = ", ".join(f"{name} of shape {array.shape}" for name, array in content.items()) or "no tensor"
        raise FitnessError(f"{path} has {shapes}", "tensors with as many items as each other, 1 or more")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise FitnessError(f"{path}: labels are {labels.dtype} of shape {labels.shape}", "a whole number for each item")
    for name, array in content.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FitnessError(f"{path}: {name} has values that are NaN or infinite", "finite numbers")
    return [
        CalibrationTensors(
            {name: array[number].copy() for name, array in content.items()},
            int(labels[number]) if labels is not None else None,
        )
        for number in range(counts.pop())
    ]


def _document(item: CalibrationTensors) -> Document:
    digest = hashlib.sha256()
    for name, array in sorted(item.tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    asked = digest.hexdigest()
    digest.update(str(item.label).encode())
    return Document(asked, digest.hexdigest())
