"""Slices of intermediates: merged once, then kept for the candidates of a lineage that come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Sources
from evomerge.merge.execution.stage_slices import StageSlices
from evomerge.merge.planning.slice_plan import Plan, SlicePlan
from evomerge.merge.resident.live_slices import LiveSlices
from evomerge.merge.resident.spread import anywhere, moved
from evomerge.recipes.switches import SWITCHES


class KeptStages:
    """Gives the tensors of intermediates' slices: from the caches, from the model, or merged.

    Args:
        sources: the pool's tensors; where they are merged, slices are wanted.
        memory: the worker's own cache.
        live: the slices that the model holds.
        shared: the cache that the node's workers share, or ``None``.
    """

    def __init__(self, sources: Sources, memory: MemoryCache, live: LiveSlices, shared: SharedCache | None) -> None:
        self._sources, self._memory, self._live, self._shared = sources, memory, live, shared

    def __call__(self, entry: SlicePlan) -> Mapping[str, torch.Tensor]:
        """The tensors of an intermediate's slice, which the next candidates of a lineage will ask for again."""
        return self._kept(entry) or self._merge(entry, StageSlices(entry, self._merge, self._kept))

    def expect(self, plan: Plan, nbytes: int) -> None:
        """Make room where a plan is one task's, of a recipe with a switch: the other tasks want the same shared slices.

        Args:
            plan: that the model is moved to.
            nbytes: of the model.
        """
        if any(part.method in SWITCHES for entry in plan.slices for part in entry.parts):
            self._memory.keep_at_least(2 * nbytes)  # and what is replaced, which may come back

    def _kept(self, entry: SlicePlan) -> Mapping[str, torch.Tensor] | None:
        """Tensors of an intermediate's slice that a cache or an earlier candidate has; ``None`` where none has them."""
        found = self._memory.peek(f"intermediate {entry.key}")
        if found is None and not self._sources.pool.layout.joins:  # else a model's tensors are not a checkpoint's
            found = self._live.get(entry.key) or self._memory.peek(entry.key)
            if found is None and self._shared is not None:
                found = self._shared.get(anywhere(entry.key))
                found = None if found is None else moved(found, self._sources.device)
        return None if found is None else dict(zip(entry.tensors, found.tensors, strict=True))

    def _merge(
        self, entry: SlicePlan, made: Callable[[SlicePlan], Mapping[str, torch.Tensor]]
    ) -> Mapping[str, torch.Tensor]:
        """Merge it, and keep it for those who come."""
        start = time.perf_counter()
        tensors = merge_slice(entry, self._sources.pool, sources=self._sources, made=made)
        self._memory.put(f"intermediate {entry.key}", Merged(tuple(tensors.values()), time.perf_counter() - start))
        return tensors
