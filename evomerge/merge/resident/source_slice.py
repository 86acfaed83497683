"""A slice that is a source's own, used where it lies."""

from __future__ import annotations

import torch

from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.execution.sources import Sources
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.module_slices import ModuleSlice


def source_slice(entry: SlicePlan, place: ModuleSlice, sources: Sources, dtype: torch.dtype) -> Merged | None:
    """The tensors of the source that a slice is, for a model of a dtype; ``None`` where they must be copied or merged.

    Args:
        entry: the slice's plan.
        place: which is to hold it.
        sources: the pool's tensors, on the device of the model.
        dtype: of the model.
    """
    source = entry.unchanged
    if source is None or source.made is not None or not place.is_direct or place.device != sources.device:
        return None
    tensors = []
    for name, like, (shape, held) in zip(source.tensors, entry.like, place.shapes, strict=True):
        if not sources.pool.is_merged(like):
            return None
        tensor = sources.aligned(source.model, name)
        if tensor is None or tensor.dtype != held or held != dtype:
            return None
        tensors.append(tensor.view(shape))
    return Merged(tuple(tensors), owned=False)
