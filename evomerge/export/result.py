"""Writes the result of a recipe, a model or a pipeline: the one place that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evomerge.export.model_card import ScoreLine
from evomerge.export.pipeline_writer import write_pipeline
from evomerge.export.writer import MAX_SHARD_BYTES, Progress, write_model
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe


def write_result(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    scores: Sequence[ScoreLine] = (),
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    given: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Merge a recipe and write the folder of its model, or of its pipeline where a network is merged.

    Args:
        recipe: what to merge.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty.
        max_shard_bytes: largest size of one file of weights, single larger tensors aside.
        scores: rows of the card's score table.
        progress: told after every slice.
        device: where slices are computed.
        given: by name tensors that are written in place of merged ones; none of a network.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe cannot be carried out with this pool.
    """
    more = {"max_shard_bytes": max_shard_bytes, "scores": scores, "progress": progress, "device": device}
    if recipe.network is not None:
        return write_pipeline(recipe, pool, out, **more)  # type: ignore[arg-type]
    return write_model(recipe, pool, out, given=given, **more)  # type: ignore[arg-type]
