"""Models brought to one vocabulary when their pool is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import Layout
from evomerge.models.checkpoints.folding import FoldedRoom
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.vocabularies.aligned_checkpoint import AlignedCheckpoint, RowTensor, aligned_name
from evomerge.models.vocabularies.axes import row_axes
from evomerge.models.vocabularies.vocabulary import Vocabulary

Stored = Mapping[str, Mapping[str, str]]


def axes_in(layout: Layout, config: Any, trust_remote_code: bool) -> dict[str, int]:
    """The axis of the rows, by the layout's name, of the tensors that have a row for every token."""
    axes = row_axes(config, trust_remote_code)
    return {name: axes[place] for name, place in layout.parameters.items() if place in axes}


def rows_problem(
    model: str, checkpoint: Checkpoint, stored: Mapping[str, str], axes: Mapping[str, int], rows: int
) -> PoolError | None:
    """The error for a model whose tensors have other rows than its config.json says."""
    for name, axis in axes.items():
        own = stored.get(name, "")
        shape = checkpoint.shapes.get(own, ())
        if axis < len(shape) and shape[axis] != rows:
            given = f"model {model!r} has a vocabulary of {rows} in config.json, and {shape[axis]} rows in {own!r}"
            return PoolError(given, "as many of both", "put the vocab_size into config.json that it was trained with")
    return None


def with_rows(layout: Layout, axes: Mapping[str, int], rows: int) -> Layout:
    """The layout of a model with so many rows."""
    shapes = dict(layout.shapes)
    for name, axis in axes.items():
        shape = shapes[name]
        shapes[name] = (*shape[:axis], rows, *shape[axis + 1 :])
    return replace(layout, shapes=MappingProxyType(shapes))


def aligned(
    vocabulary: Vocabulary,
    axes: Mapping[str, int],
    checkpoints: Mapping[str, Checkpoint],
    stored: Stored,
    room: FoldedRoom,
) -> tuple[dict[str, Checkpoint], dict[str, Mapping[str, str]]]:
    """The checkpoints and the names of their tensors, once all have the rows of one vocabulary.

    Args:
        vocabulary: says where rows come from.
        axes: of `axes_in`.
        checkpoints: by model, as they are.
        stored: the models' own tensor names by the layout's.
        room: for rows that are kept in memory.

    Raises:
        PoolError: nothing has rows.
    """
    if not axes:
        raise PoolError(
            "no tensor of this architecture has a row for every token",
            "embeddings that grow with vocab_size",
            "give all models one tokenizer and vocab_size",
        )
    tensors = {
        name: RowTensor(axis, {model: own[name] for model, own in stored.items()}) for name, axis in axes.items()
    }
    found: dict[str, Checkpoint] = {
        model: AlignedCheckpoint(model, checkpoints, tensors, vocabulary.rows, room) for model in checkpoints
    }
    names = {name: aligned_name(name) for name in tensors}
    return found, {model: {**own, **names} for model, own in stored.items()}
