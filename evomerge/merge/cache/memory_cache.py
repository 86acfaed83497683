"""The worker's own tier of the layer cache."""

from __future__ import annotations

import heapq
from collections import OrderedDict

import torch

from evomerge.merge.cache.merged_slice import Merged, Shapes, allocate

START_SHARE = 0.25
"""Of the model's bytes: what is kept before anything has come back."""

SPARE = 1 << 27
"""Bytes kept to be used again, besides a slice of every shape."""

_MOST_DROPPED = 1 << 16  # keys to know again
_MOST_STALE = 1000  # entries of the queue


class MemoryCache:
    """Merged slices in the worker's memory, within a budget.

    Evicts by GreedyDual-Size (Cao and Irani, 1997): first what costs the least seconds per byte to compute again, aged
    by what was evicted before. Tensors are handed over, not copied, and the memory of what is evicted is used again.

    Args:
        budget: bytes.
        start: bytes to begin with. Each slice that comes back after it was dropped is a reason to keep more, up to the
            budget: a search that never repeats itself is not made to touch memory it has no use for.
    """

    def __init__(self, budget: int, start: int | None = None) -> None:
        self.budget = budget
        self.allowed = budget if start is None else min(start, budget)
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self.used = 0
        self._held: dict[str, tuple[float, Merged]] = {}
        self._queue: list[tuple[float, str]] = []  # of priorities, with those that were taken since
        self._age = 0.0
        self._spare_bytes = 0
        self._recycles = True
        self._spare: dict[tuple[Shapes, torch.device], list[tuple[torch.Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: str) -> Merged | None:
        """The slice of a key, which leaves the cache; ``None`` when it is not there."""
        found = self._held.pop(key, None)
        if found is None:
            if key in self._dropped:
                del self._dropped[key]
                self.allowed = min(self.budget, self.allowed + self.allowed // 16)
            return None
        self.used -= found[1].nbytes
        return found[1]

    def peek(self, key: str) -> Merged | None:
        """The slice of a key, which stays, as one that was used just now; ``None`` when it is not there."""
        found = self.take(key)
        if found is not None:
            self.put(key, found)
        return found

    def put(self, key: str, merged: Merged) -> None:
        """Hand a slice over; what there is no room for, and what costs nothing to have again, is not kept."""
        size = merged.nbytes
        if key in self._held or not merged.owned or merged.cost <= 0 or size > self.allowed:
            self.recycle(merged)
            return
        while self.used + size > self.allowed:
            self._evict()
        value = self._age + merged.cost / max(size, 1)
        self._held[key] = value, merged
        self.used += size
        heapq.heappush(self._queue, (value, key))
        if len(self._queue) > 2 * len(self._held) + _MOST_STALE:
            self._queue = [(value, key) for key, (value, _) in self._held.items()]
            heapq.heapify(self._queue)

    def _evict(self) -> None:
        value, key = heapq.heappop(self._queue)
        if key not in self._held or self._held[key][0] != value:
            return  # taken since it was queued
        merged = self._held.pop(key)[1]
        self._age = value
        self.used -= merged.nbytes
        self._dropped[key] = None
        if len(self._dropped) > _MOST_DROPPED:
            self._dropped.popitem(last=False)
        self.recycle(merged)

    def resize(self, budget: int, start: int | None = None) -> None:
        """Keep so many bytes from now on, at least at first; `start` as it is when a cache is made."""
        self.budget = budget
        self.allowed = budget if start is None else min(start, budget)
        while self.used > self.allowed:
            self._evict()

    def keep_at_least(self, nbytes: int) -> None:
        """Keep so many bytes from now on, within the budget: what is put will be asked for again."""
        self.allowed = max(self.allowed, min(nbytes, self.budget))

    def clear(self) -> bool:
        """Let everything go: memory has run out. Half as much is kept from now on, the second time nothing.

        What is free goes back to whoever gives memory, instead of being used again here.

        Returns:
            Whether there was anything.
        """
        held = bool(self.used or self._spare_bytes)
        self._held.clear()
        self._queue.clear()
        self._spare.clear()
        self.used = self._spare_bytes = 0
        self.budget = self.budget // 2 if self._recycles else 0
        self._recycles = False
        self.allowed = min(self.allowed, self.budget)
        return held

    def recycle(self, merged: Merged) -> None:
        """Keep the memory of a slice for the next one of its shapes."""
        if not merged.owned or not merged.tensors or not self._recycles:
            return
        spare = self._spare.setdefault((merged.shapes, merged.tensors[0].device), [])
        size = merged.nbytes
        if not spare or self._spare_bytes + size <= SPARE:
            spare.append(merged.tensors)
            self._spare_bytes += size

    def empty(self, shapes: Shapes, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Memory for a slice, that of a former one where there is one: new pages cost as much as a merge."""
        spare = self._spare.get((shapes, device))
        if not spare:
            return allocate(shapes, device)
        tensors = spare.pop()
        self._spare_bytes -= sum(tensor.nbytes for tensor in tensors)
        return tensors
