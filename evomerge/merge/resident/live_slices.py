"""The merged slices that a model holds: each once, in however many places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.resident.module_slices import ModuleSlice


@dataclass
class _Live:
    """A merged slice and the number of places that hold it."""

    merged: Merged
    places: int = 0


class LiveSlices:
    """Keeps count of the places of a model that hold a merged slice; what none holds any more goes into the cache.

    Slices whose memory is not the worker's own (sources, mapped files) are not counted: nothing becomes of them.

    Args:
        memory: the worker's own cache.
    """

    def __init__(self, memory: MemoryCache) -> None:
        self._memory = memory
        self._live: dict[str, _Live] = {}

    def get(self, key: str) -> Merged | None:
        """The slice of a key where some place holds it."""
        live = self._live.get(key)
        return live.merged if live is not None else None

    def claim(self, key: str, merged: Merged) -> None:
        """A place has a slice, or will: claims come before what it replaces is released."""
        if merged.owned:
            self._live.setdefault(key, _Live(merged)).places += 1

    def release(self, place: ModuleSlice) -> None:
        """A place is about to hold something else: until then, what it has is known to be nobody's."""
        key, held = place.key, place.held
        place.key, place.held = "", Merged(held.tensors, owned=False)
        if not held.owned:
            return
        if not key:
            self._memory.recycle(held)
            return
        live = self._live[key]
        live.places -= 1
        if not live.places:
            del self._live[key]
            self._memory.put(key, held)

    def forget(self, places: Iterable[ModuleSlice]) -> None:
        """Take what places hold for nothing that is known; its memory is used again."""
        for live in self._live.values():
            self._memory.recycle(live.merged)
        self._live.clear()
        for place in places:
            place.key, place.held = "", Merged(place.held.tensors, owned=False)
