"""What pins the models of a recipe: hub commits, and fingerprints of content that no commit pins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evomerge.errors import PoolError
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles
from evomerge.recipes.slices import ModelRef


def with_fingerprints(ref: ModelRef, checkpoint: Checkpoint) -> ModelRef:
    """`ref` with the fingerprint of each of its parts, the model and its adapter, that no hub commit pins."""
    pinned = [
        part if part.revision else replace(part, fingerprint=files.fingerprint())
        for _, part, files in _parts(ref, checkpoint)
    ]
    return replace(pinned[0], adapter=pinned[1] if len(pinned) > 1 else None)


def changed_since(name: str, ref: ModelRef, checkpoint: Checkpoint) -> Iterator[PoolError]:
    """An error for each part of the model `name` whose content is not what the fingerprint in `ref` says."""
    for what, part, files in _parts(ref, checkpoint):
        if part.fingerprint and files.fingerprint() != part.fingerprint:
            yield PoolError(
                f"{what} {name!r} in {files.folder} is not the one that the recipe was made from "
                f"({files.fingerprint()[:19]} instead of {part.fingerprint[:19]})",
                "",
                "restore the files, or run the search again",
            )


def _parts(ref: ModelRef, checkpoint: Checkpoint) -> Iterator[tuple[str, ModelRef, TensorFiles]]:
    checkpoint = checkpoint.plain
    if isinstance(checkpoint, FoldedCheckpoint) and ref.adapter is not None:
        yield "model", ref, checkpoint.base
        yield "the adapter of model", ref.adapter, checkpoint.adapter
    else:
        yield "model", ref, checkpoint
