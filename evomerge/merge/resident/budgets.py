"""What a worker does with the memory that its model and its forwards leave: sources first, then merged slices.

Copies of sources are what a candidate pays for most on a GPU, merging again what was merged before costs little there.
The same rules divide what was measured on a GPU and what a GPU of some size would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.execution.sources import (
    DEVICE_NOTES_SHARE,
    HOST_SHARE,
    NOTES_SHARE,
    Placement,
    Sources,
    free_memory,
)
from evomerge.merge.resident.hidden_states import HiddenStates
from evomerge.models.pool import Pool

CACHE_SHARE = 0.25
"""Of the memory that is free: what merged slices may take, unless told otherwise."""
STATES_SHARE = 0.125
"""The same of hidden states."""

STAGING_SHARE = 0.25
"""Of what is left of a GPU that cannot hold all sources: at most, for those that are copied ahead."""

MARGIN = 0.05
"""Of a worker's share of a GPU: what fragments there."""


@dataclass(frozen=True)
class Budgets:
    """Bytes that a worker may keep.

    Attributes:
        placement: of sources.
        cache: of merged slices.
        states: of hidden states.
    """

    placement: Placement
    cache: int
    states: int = 0


def divide(room: int, host: int, sources: int, layer: int = 0) -> Budgets:
    """The budgets of a worker on a GPU.

    Args:
        room: bytes of the GPU that are left when the model is there and its largest forward has been.
        host: free bytes of main memory for each of the machine's workers.
        sources: bytes of all source models.
        layer: of these, bytes of the slice of a layer that has most, from every model.
    """
    # No more than what has to be copied anyway: what it takes is copied besides.
    staging = max(0, min(2 * layer, int(room * STAGING_SHARE), sources - room))
    on_device = max(0, min(room - staging, sources))
    pinned = min(sources - on_device, int(host * HOST_SHARE))
    left = max(0, room - staging - on_device)
    notes = int(host * NOTES_SHARE), int(left * DEVICE_NOTES_SHARE)
    placement = Placement(on_device, pinned, *notes, staging)
    return Budgets(placement, int(left * CACHE_SHARE), int(left * STATES_SHARE))


def layer_bytes(pool: Pool) -> int:
    """Bytes of the slice of a layer that has most, from every model, as they are stored."""
    elements, largest = (
        sum(pool.info.sizes),
        max(
            (size for slice_, size in zip(pool.info.slices, pool.info.sizes, strict=True) if slice_.layer is not None),
            default=0,
        ),
    )
    return -(-pool.nbytes * largest // max(1, elements))


def share_of(total: int, workers: int) -> int:
    """Bytes of a GPU that each of the workers which share it may take."""
    return int(total / max(workers, 1) * (1 - MARGIN))


def room_on(devices: Sequence[torch.device], workers: int, most: int | None = None) -> int:
    """Bytes that this process may take beside what it has: of several GPUs the least, times their number.

    Args:
        devices: the GPUs.
        workers: how many share each of them.
        most: bytes of a GPU to count with, where that is less than it has.
    """
    found = []
    for device in devices:
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        share = share_of(total if most is None else min(most, total), workers)
        found.append(max(0, min(int(free - MARGIN * total / max(workers, 1)), share - own)))
    return len(found) * min(found, default=0)


def first_budgets(device: torch.device, workers: int) -> Budgets:
    """What may be kept before anything was scored; on a GPU nothing, until forwards have shown what they need.

    Args:
        device: where the model is; its memory is that of the machine unless it is a GPU.
        workers: of the machine.
    """
    host = free_memory(torch.device("cpu")) // max(workers, 1)
    if device.type == "cuda":
        return Budgets(Placement(0, 0, int(host * NOTES_SHARE)), 0)
    free = free_memory(device) / max(workers, 1)
    return Budgets(Placement.measured(device, workers), int(free * CACHE_SHARE), int(free * STATES_SHARE))


@dataclass
class Room:
    """What is left of the GPUs that a model is on, to be divided once a candidate was scored there.

    Attributes:
        devices: that the model is on; those of another kind had their room divided from the start.
        workers: of the machine.
        sharing: of them, those that share a GPU.
        gpu: bytes of a GPU to count with; ``None`` for those that it has.
        places: whether sources are to be placed; not where a placement was given.
        cache, states: bytes of merged slices and hidden states that were asked for; ``None`` to leave it to the room.
        settled: whether it was divided, or memory has run out before.
    """

    devices: Sequence[torch.device]
    workers: int
    sharing: int
    gpu: int | None
    places: bool
    cache: int | None
    states: int | None = None
    settled: bool = False

    def use(self, sources: Sources, memory: MemoryCache, states: HiddenStates) -> None:
        """Tell sources, merged slices and hidden states what they may take; does something once."""
        if self.settled or self.devices[0].type != "cuda":
            return
        self.settled = True
        room = room_on(self.devices, self.sharing, self.gpu)
        promised = max(0, self.cache - memory.used) if self.cache is not None else 0
        promised += max(0, self.states - states.used) if self.states is not None else 0
        host = free_memory(torch.device("cpu")) // max(self.workers, 1)
        found = divide(max(0, room - promised), host, sources.pool.nbytes, layer_bytes(sources.pool))
        if self.places:
            sources.place(found.placement)
        if self.cache is None:
            memory.resize(found.cache, sources.pool.nbytes // max(1, 4 * len(sources.pool.checkpoints)))
        if self.states is None:
            states.resize(found.states)
