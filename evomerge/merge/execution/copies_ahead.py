"""Sources that lie in main memory, on their way to a GPU: copied one slice ahead of what is merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.cache.merged_slice import ALIGNMENT
from evomerge.merge.planning.slice_plan import SlicePlan

Name = tuple[str, str]
"""A model and a tensor, by its name in the pool's layout."""


class Held(Protocol):
    """What gives source tensors."""

    def held(self, model: str, name: str) -> torch.Tensor:
        """A tensor where it is kept, flat."""

    def flat(self, model: str, name: str) -> torch.Tensor:
        """A tensor on the device, flat."""


class Staging:
    """Two buffers on a GPU that take turns, and the stream of the copies that fill them.

    They are fixed: no memory is given back while a stream uses it, so that the allocator need not know of either.

    Args:
        device: the GPU.
        nbytes: of both together.

    Attributes:
        size: bytes of each.
    """

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.size = nbytes // 2 // ALIGNMENT * ALIGNMENT
        self._device = device
        self._buffers = [torch.empty(self.size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._stream = torch.cuda.Stream(device)
        self._filled = [torch.cuda.Event() for _ in range(2)]
        self._read = [torch.cuda.Event() for _ in range(2)]

    def begin(self) -> None:
        """Whatever kernels were launched so far may be reading the buffers, or what their memory was before."""
        for turn in range(2):
            self.was_read(turn)

    def was_read(self, turn: int) -> None:
        """All kernels that read a buffer are launched."""
        self._read[turn].record(torch.cuda.current_stream(self._device))

    def fill(self, turn: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy flat tensors of the host into a buffer, once what was there is read; the copies, to be `awaited`."""
        copies, start = [], 0
        self._stream.wait_event(self._read[turn])
        with torch.cuda.stream(self._stream):
            for tensor in tensors:
                place = self._buffers[turn][start : start + tensor.nbytes].view(tensor.dtype)
                copies.append(place.copy_(tensor, non_blocking=True))
                start += padded(tensor.nbytes)
        self._filled[turn].record(self._stream)
        return copies

    def awaited(self, turn: int) -> None:
        """Kernels that are launched from now on wait for a buffer's copies; the host does not."""
        torch.cuda.current_stream(self._device).wait_event(self._filled[turn])

    def close(self) -> None:
        """Let the buffers' memory go: what gets it comes after the last copy."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._buffers.clear()


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes of a buffer."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass
class _Batch:
    """What is copied at a time: tensors of one slice, all of them where a buffer has room.

    Attributes:
        turn: which buffer has it.
        places: numbers of the slice and of its merged tensors that it is for.
        copies: on the device, by name.
    """

    turn: int
    places: frozenset[tuple[str, int]]
    copies: dict[Name, torch.Tensor]


class CopiesAhead:
    """Source tensors for slices that are merged in a known order: while one is, the next one's are copied.

    Kernels wait for the copies that they read, copies for the kernels that read what was in their buffer; the host
    waits for neither. A tensor whose sources together exceed a buffer is copied when it is merged.

    Args:
        sources: give the tensors; what they hold on the device is used there.
        staging: the buffers.
        plans: the slices, in order. Intermediates that they take read their sources without this.
    """

    def __init__(self, sources: Held, staging: Staging, plans: Sequence[SlicePlan]) -> None:
        self._sources, self._staging = sources, staging
        self._todo = _in_order(plans)
        self._waiting: tuple[tuple[str, int], dict[Name, torch.Tensor]] | None = None
        self._now: _Batch | None = None
        staging.begin()
        self._next = self._copied(0)

    def enter(self, plan: SlicePlan, index: int) -> None:
        """A tensor of a slice is about to be merged: all before it is launched."""
        if self._next is None or (plan.key, index) not in self._next.places:
            return
        if self._now is not None:
            self._staging.was_read(self._now.turn)
        self._now = self._next
        self._staging.awaited(self._now.turn)
        self._next = self._copied(1 - self._now.turn)

    def flat(self, model: str, name: str) -> torch.Tensor:
        """A tensor as one dimension on the device: not to be written to, and there until the next is entered."""
        found = self._now.copies.get((model, name)) if self._now is not None else None
        return found if found is not None else self._sources.flat(model, name)

    def _copied(self, turn: int) -> _Batch | None:
        """The next tensors that have to be copied, on their way; ``None`` where all others are there."""
        places, tensors, used = list[tuple[str, int]](), dict[Name, torch.Tensor](), 0
        for place, missing in self._missing():
            size = sum(padded(tensor.nbytes) for name, tensor in missing.items() if name not in tensors)
            if places and (place[0] != places[0][0] or used + size > self._staging.size):
                self._waiting = place, missing
                break
            if size <= self._staging.size:
                places.append(place)
                tensors |= missing
                used += size
        if not places:
            return None
        copies = self._staging.fill(turn, list(tensors.values()))
        return _Batch(turn, frozenset(places), dict(zip(tensors, copies, strict=True)))

    def _missing(self) -> Iterator[tuple[tuple[str, int], dict[Name, torch.Tensor]]]:
        """Places that read tensors which lie in main memory, with these."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            yield waiting
        for place, names in self._todo:
            try:
                found = {name: self._sources.held(*name) for name in names}
            except EvomergeError:  # it is raised with the tensor's name when that is merged
                continue
            found = {name: tensor for name, tensor in found.items() if tensor.device.type == "cpu"}
            if found:
                yield place, found


def _in_order(plans: Sequence[SlicePlan]) -> Iterator[tuple[tuple[str, int], list[Name]]]:
    """Every tensor of the plans in the order in which they are merged, and the models' tensors that it reads."""
    for plan in plans:
        for part in plan.parts:
            every = (*part.sources, *([part.base] if part.base else []))
            models = [source for source in every if source.made is None]
            for index in part.tensors:
                yield (plan.key, index), list(dict.fromkeys((s.model, s.tensors[index]) for s in models))
