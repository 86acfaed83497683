"""Which slices of a plan are merged at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.module_slices import ModuleSlice

BATCH = 1 << 26
"""Bytes of slices that are merged at a time: what they replace is used again for the next."""

Missing = tuple[SlicePlan, list[ModuleSlice]]
"""A slice that is to be merged, and the places that want it."""


def batches(missing: Iterable[Missing], device: torch.device) -> Iterator[list[Missing]]:
    """Slices to merge at a time: on the CPU enough for every thread, elsewhere one."""
    batch: list[Missing] = []
    size = 0
    for entry, places in missing:
        batch.append((entry, places))
        size += places[0].nbytes
        if size >= BATCH or device.type != "cpu":
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def share_cost(made: Sequence[Merged], seconds: float) -> None:
    """Say of slices that took some time together what each took: shares by size."""
    each_byte = seconds / max(1, sum(merged.nbytes for merged in made))
    for merged in made:
        merged.cost = merged.nbytes * each_byte
