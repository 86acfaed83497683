"""Where a slice is had without merging it: the nearest place that has it."""

from __future__ import annotations

import torch

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.sources import Sources
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.live_slices import LiveSlices
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.module_slices import ModuleSlice
from evomerge.merge.resident.source_slice import source_slice
from evomerge.merge.resident.spread import anywhere, moved


class NearestSlices:
    """Looks for slices in the model, among sources, in the worker's cache and in the shared one.

    Args:
        live: the slices that the model holds.
        memory: the worker's own cache.
        shared: the cache that the node's workers share, or ``None``.
        sources: the pool's tensors.
        dtype: of the model.

    Attributes:
        references: by key, slices that are a source's own, where they lie.
    """

    def __init__(
        self, live: LiveSlices, memory: MemoryCache, shared: SharedCache | None, sources: Sources, dtype: torch.dtype
    ) -> None:
        self._live, self._memory, self._shared = live, memory, shared
        self._sources, self._dtype = sources, dtype
        self.references: dict[str, Merged] = {}

    def find(self, entry: SlicePlan, place: ModuleSlice, quantised: bool, count: MergeCount) -> Merged | None:
        """The slice from the nearest place that has it; ``None`` where it must be merged.

        Args:
            entry: the slice's plan, under the key that the place will hold it by.
            place: which is to hold it.
            quantised: whether it is wanted quantised: no source has it so.
            count: of the plan that is applied.
        """
        found = self._live.get(entry.key)
        if found is not None:  # elsewhere in the model
            count.kept += 1
            count.saved += found.cost
            self._live.claim(entry.key, found)
            return found
        found = None if quantised else self._reference(entry, place)
        if found is not None:
            count.referenced += 1
            return found
        found = self._memory.take(entry.key)
        if found is not None:
            count.memory += 1
        else:
            found = self._shared.get(anywhere(entry.key)) if self._shared is not None else None
            if found is None:
                return None
            count.shared += 1
            found = moved(found, place.device)
        count.saved += found.cost
        self._live.claim(entry.key, found)
        return found

    def _reference(self, entry: SlicePlan, place: ModuleSlice) -> Merged | None:
        """A slice that is a source's own, where it lies; ``None`` where it must be copied."""
        found = self.references.get(entry.key) or source_slice(entry, place, self._sources, self._dtype)
        if found is not None:
            self.references[entry.key] = found
        return found
