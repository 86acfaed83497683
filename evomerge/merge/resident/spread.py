"""A model larger than one GPU: its layers lie on several, and each merged slice goes to where its layer is.

Merging itself happens on the first device, as for a model on one. A slice that lies on another device has a key of its
own, so that what is kept of it is kept there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from evomerge.errors import PoolError, RecipeError
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.loading import load_module
from evomerge.merge.resident.module_slices import ModuleSlice
from evomerge.models.pool import Pool

SPREAD = "spread"
"""Stands for all the GPUs that the process sees."""
_AT = "@"


def load_spread(pool: Pool, attn_implementation: str | None) -> Any:
    """The model as `from_pretrained` spreads it over the GPUs, balanced by the room that they have.

    Raises:
        PoolError: transformers cannot load the model, or the GPUs together are too small for it.
    """
    module = load_module(pool, attn_implementation, device_map="balanced")
    outside = {str(place) for place in getattr(module, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if outside:
        raise PoolError(
            f"the model does not fit into {torch.cuda.device_count()} GPUs: parts would be on {', '.join(outside)}",
            "GPUs that hold all of it",
            "raise evaluator.gpus_per_worker",
        )
    return module


def put(entry: SlicePlan, place: ModuleSlice, first: torch.device) -> SlicePlan:
    """A slice's plan with the key of the device that it lies on, where that is not the first."""
    return entry if place.device == first else replace(entry, key=f"{entry.key}{_AT}{place.device}")


def anywhere(key: str) -> str:
    """The key of a slice's content, wherever it lies."""
    return key.partition(_AT)[0]


def moved(merged: Merged, device: torch.device) -> Merged:
    """The slice on a device: itself where it lies there."""
    if all(tensor.device == device for tensor in merged.tensors):
        return merged
    return Merged(tuple(tensor.to(device) for tensor in merged.tensors), merged.cost)


def require_own_order(origins: list[tuple[str, int]], layers: int) -> None:
    """`RecipeError` unless every layer stays where it is: those of a spread model cannot change their devices."""
    if [layer for _, layer in origins] != list(range(layers)):
        raise RecipeError(
            "the recipe moves layers, and the resident model lies on several devices",
            "layers in their own order",
            "use one GPU for each worker (evaluator.gpus_per_worker=1), or a space that keeps the order",
        )
