"""Hidden states of earlier candidates: a model whose lower layers were there before need not compute them again."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.planning.slice_plan import Plan, SlicePlan, canonical_slice, origin_of

_MOST_SEEN = 1 << 16  # keys to know again
_MEMORY = 16  # how many models "of late" is
_SELDOM = 0.05
_AFTER = ("final_norm", "head")  # what computes after the layers


class HiddenStates:
    """What models gave below their layers, under the keys of all that they computed it with.

    Evicts as `MemoryCache` does: first what saves the fewest layers, aged by what was evicted before.

    Args:
        budget: bytes.

    Attributes:
        keys: of the present model: before its first layer, before its second, ..., after its last; equal keys, equal
            hidden states. Empty while it is not known what the model is.
        seen: how many of its layers a model before it had too, from the first one on.
    """

    # Of late, the share of a model's layers that one before it had too: at first all are taken to.
    _repeats = 1.0

    def __init__(self, budget: int) -> None:
        self._cache = _States(budget)
        self._known: OrderedDict[str, None] = OrderedDict()
        self.keys: tuple[str, ...] = ()
        self.seen = 0

    @property
    def budget(self) -> int:
        """Bytes that all hidden states may take."""
        return self._cache.budget

    @property
    def used(self) -> int:
        """Bytes that they take."""
        return self._cache.used

    @property
    def likely(self) -> bool:
        """Whether models begin like others often enough to keep what none has asked for yet."""
        return self._repeats > _SELDOM

    def begin(self, keys: Sequence[str]) -> None:
        """The model is another one, or, without keys, one that is not known."""
        self.keys = tuple(keys)
        self.seen = max((depth for depth, key in enumerate(self.keys) if key in self._known), default=0)
        if self.keys:
            self._repeats += (self.seen / max(len(self.keys) - 1, 1) - self._repeats) / _MEMORY
        for key in self.keys:
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > _MOST_SEEN:
            self._known.popitem(last=False)

    def get(self, key: str) -> tuple[torch.Tensor, ...] | None:
        """What was put under a key, as used just now; ``None`` where it is not there. Not to be written to."""
        found = self._cache.peek(key)
        return None if found is None else found.tensors

    def put(self, key: str, tensors: Sequence[torch.Tensor], cost: float) -> None:
        """Hand hidden states over.

        Args:
            key: of all that they follow from.
            tensors: nobody else's.
            cost: of computing them again: in any unit, the same for all.
        """
        self._cache.put(key, Merged(tuple(tensors), cost))

    def resize(self, budget: int) -> None:
        """Keep so many bytes from now on."""
        self._cache.resize(budget)

    def clear(self) -> bool:
        """Let everything go: memory has run out. Half as much is kept from now on, the second time nothing."""
        return self._cache.clear()


class _States(MemoryCache):
    """A cache whose memory is given back: batches differ in size, and theirs would seldom be used again."""

    def recycle(self, merged: Merged) -> None:
        """Nothing."""


def hidden_keys(plan: Plan) -> list[str]:
    """The keys of a plan's model before each of its layers and after the last.

    Each is a hash of what comes before the layers and of all layers below: their slices, the factors of what these add
    to the residual stream, and the number of the source layer, which decides what a layer is besides its weights.

    Args:
        plan: of a whole model.
    """
    below: list[SlicePlan] = []
    layers: dict[int, list[SlicePlan]] = {}
    for entry in plan.slices:
        if entry.slice.layer is not None:
            layers.setdefault(entry.slice.layer, []).append(entry)
        elif entry.slice.component not in _AFTER:
            below.append(entry)
    found = [_digest("", below)]
    for layer in range(len(layers)):
        found.append(_digest(f"{found[-1]} {origin_of(layers[layer][0])[1]}", layers[layer]))
    return found


def _digest(before: str, entries: Iterable[SlicePlan]) -> str:
    content = [before, [[entry.slice.component, canonical_slice(entry).key, entry.scale] for entry in entries]]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
