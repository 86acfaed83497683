"""Tensors from files, which statistics of models that read no text are made on: images say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, FitnessError
from evomerge.protocols import CalibrationTensors
from fitness._documents import Document, by_model, check_draw, drawn

LABELS = "labels"


class TensorItems:
    """Items of safetensors files: an entry for every argument of the model, the items along its first dimension.

    An entry ``labels`` of whole numbers has the right classes: their likelihood counts with ``statistics.labels=text``.

    Args:
        files: paths, for all models; or a mapping of models to theirs.
        items: of each model; drawn from all of its files where these have more.
        seed: of the draw.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(self, files: list[str] | dict[str, Any], *, items: int = 256, seed: int = 0) -> None:
        check_draw(items, seed)
        if not files:
            raise ConfigError("files is empty", "at least one file", "for example files=[images.safetensors]")
        self._files, self._items, self._seed = files, items, seed
        self._read: dict[str, list[CalibrationTensors]] = {}
        self._given: dict[str, list[Document]] = {}

    def check(self) -> None:
        """`FitnessError` for a file that cannot be read."""
        named = self._files.values() if hasattr(self._files, "values") else [self._files]
        for each in named:
            for file in [each] if isinstance(each, str) else each:
                self._of_file(str(file))

    def items(self, model: str) -> Sequence[CalibrationTensors]:
        """The items of a model."""
        found = [item for file in by_model(self._files, model, "files") for item in self._of_file(file)]
        chosen = drawn(found, self._items, self._seed)
        self._given[model] = [_document(item) for item in chosen]
        return chosen

    def documents(self) -> Sequence[tuple[str, str]]:
        """Hashes of the items of all models so far: of their tensors, without labels and with them."""
        return [document for own in self._given.values() for document in own]

    def _of_file(self, file: str) -> list[CalibrationTensors]:
        if file not in self._read:
            self._read[file] = _items_of(Path(file))
        return self._read[file]


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
