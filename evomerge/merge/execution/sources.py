"""The pool's tensors where merging happens, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from evomerge.merge.cache.merged_slice import ALIGNMENT
from evomerge.merge.execution.copies_ahead import CopiesAhead, Staging
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.pinned_region import PinnedRegion, open_region
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.models.pool import Pool
from evomerge.models.statistics import Statistic
from evomerge.utils.memory import free_host_memory

DEVICE_SHARE, HOST_SHARE, NOTES_SHARE, DEVICE_NOTES_SHARE = 0.5, 0.25, 0.25, 0.125
"""Of what is free: for sources on an accelerator that is no GPU and pinned ones, for notes on either."""


@dataclass(frozen=True)
class Placement:
    """Bytes of source tensors to keep near the device; what fits nowhere is read from the mapped files.

    Attributes:
        device: on an accelerator.
        host: in pinned host memory, for an accelerator; sources on the CPU are mapped and cost nothing. Where the
            machine's workers share what they pin (`pinned_region`), anything above zero allows it.
        notes: of what is derived from sources once for all candidates: orders of magnitudes, or parts of them.
        device_notes: likewise, of what an accelerator reads beside the sources: ranks of magnitudes.
        staging: of a GPU, for sources that are copied while the slice before theirs is merged (`Sources.ahead`).
    """

    device: int
    host: int
    notes: int
    device_notes: int = 0
    staging: int = 0

    @staticmethod
    def measured(device: torch.device, workers: int = 1) -> Placement:
        """Shares of what is free: half of the device, a quarter of the host, divided among the host's workers, and for
        notes a quarter of the host and an eighth of the device."""
        host = free_memory(torch.device("cpu")) // max(workers, 1)
        if device.type == "cpu":
            return Placement(0, 0, int(host * NOTES_SHARE))
        own = free_memory(device)
        notes = int(host * NOTES_SHARE), int(own * DEVICE_NOTES_SHARE)
        return Placement(int(own * DEVICE_SHARE), int(host * HOST_SHARE), *notes)


class Sources:
    """Source tensors in their stored dtype, on the device or on the way to it, and notes about them.

    What is kept changes the time that a merge takes and never its result.

    Args:
        pool: the source models.
        device: where merging happens.
        placement: how much to keep where; measured by default.
        peers: other devices of the same kind that keep an equal part of what goes on the device: what comes from them
            does not come from the host.
        notes: what is known of the pool's tensors; nothing for ``None``.

    Attributes:
        placement: as it is now.
        device_bytes, host_bytes: of what is kept there.
    """

    def __init__(
        self,
        pool: Pool,
        device: str | torch.device = "cpu",
        placement: Placement | None = None,
        peers: Sequence[torch.device] = (),
        notes: Notes | None = None,
    ) -> None:
        self.pool = pool
        self.device = torch.device(device)
        self.placement = placement or Placement.measured(self.device)
        self.notes = notes or Notes(self.placement.notes, self.placement.device_notes)
        self.device_bytes = self.host_bytes = 0
        self._taken = dict.fromkeys((self.device, *peers), 0)
        self._ran_out = False
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._staging: Staging | None = None
        self._region: PinnedRegion | None = None
        self._has_region = True  # until it is known that there can be none

    def flat(self, model: str, name: str) -> torch.Tensor:
        """A tensor of a model as one dimension on the device, in its stored dtype: not to be written to."""
        kept = self.held(model, name)
        return kept if kept.device == self.device else kept.to(self.device, non_blocking=True)

    def ahead(self, plans: Sequence[SlicePlan]) -> CopiesAhead | None:
        """The source tensors of slices that are merged in this order, each copied while the one before is merged.

        ``None`` where nothing is copied that way: no GPU, or no memory of it to be used for that.
        """
        if self.device.type != "cuda" or not self.placement.staging or not plans:
            return None
        if self._staging is None:
            self._staging = Staging(self.device, self.placement.staging)
        return CopiesAhead(self, self._staging, plans)

    def held(self, model: str, name: str) -> torch.Tensor:
        """A tensor of a model as one dimension where it is kept, on the device or on the host: not to be written to."""
        kept = self._kept.get((model, name))
        if kept is None:
            with self.notes.noting():  # folds an adapter in, or takes it to the device
                read = self.pool.read(model, name).view(-1)
                kept = self._placed(model, name, read) if self.device.type != "cpu" else read
            if kept is not read or self.pool.is_kept(model, name):
                self._kept[model, name] = kept
        return kept

    def statistic(self, model: str, name: str, kind: str, key: str) -> Statistic | None:
        """What data says of a tensor of a model, where merging happens; ``None`` where it says nothing.

        Kept in the budgets for notes.

        Raises:
            PoolError: the statistics are not there, or not those of this key.
        """
        found = self.pool.statistics_of(model, kind, key)
        stored = self.pool.stored[model][name]
        if not found.has(stored):
            return None

        def read() -> Statistic:
            own = found.read(stored)
            assert own is not None, "asked for what is there"
            return own.to(self.device)

        note, size = ("statistic", key, found.entry(stored)), found.nbytes(stored)
        kept = (
            self.notes.large(note, size, read, at_once=True)
            if self.device.type == "cpu"
            else self.notes.on_device(note, size, read)
        )
        # Tensors that share a statistic have axes of their own: a mixture's experts, the number of each.
        return replace(kept, axis=found.axis(stored)) if kept is not None else read()

    def aligned(self, model: str, name: str) -> torch.Tensor | None:
        """A flat tensor that a model can use in place: on the device, at a multiple of 64 bytes; ``None`` elsewhere.

        Files rarely align their tensors: those of the CPU are copied once, within the budget for notes.
        """
        tensor = self.held(model, name)
        if self.device.type != "cpu":
            return tensor if tensor.device == self.device else None
        if tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
        return self.notes.large(("aligned", model, name), tensor.nbytes, tensor.clone, at_once=True)

    def place(self, placement: Placement) -> None:
        """Keep so much from now on; what is in main memory comes to the device when it is wanted and there is room."""
        self.placement = placement
        self.notes.budget, self.notes.device_budget = placement.notes, placement.device_notes
        self._forget_host()
        self._forget_staging()

    def release(self) -> bool:
        """Let go of what is kept to save time, first in main memory, then on the device: memory has run out there.

        It is read and found out again when it is wanted. Of the device, half as much is kept from then on, the second
        time nothing.

        Returns:
            Whether something was let go where merging happens.
        """
        self._forget_host()
        noted = bool(self.notes.device_used or (self.device.type == "cpu" and self.notes.used))
        self.notes.clear()
        staged, kept = self._forget_staging(), bool(self.device_bytes)
        if staged:
            self.placement = replace(self.placement, staging=0 if self._ran_out else self.placement.staging // 2)
        if kept:
            self.placement = replace(self.placement, device=0 if self._ran_out else self.device_bytes // 2)
            self._kept.clear()
            self._taken = dict.fromkeys(self._taken, 0)
            self.device_bytes = 0
        self._ran_out |= staged or kept
        return noted or staged or kept

    def _forget_host(self) -> None:
        self._kept = {key: tensor for key, tensor in self._kept.items() if tensor.device.type != "cpu"}
        self.host_bytes = 0

    def _forget_staging(self) -> bool:
        """Let go of the buffers that sources are copied into; whether there were any."""
        if self._staging is None:
            return False
        self._staging.close()
        self._staging = None
        return True

    def close(self) -> None:
        """Let go of everything, and leave what the machine's workers share."""
        self.release()
        if self._region is not None:
            self._region.close()
        self._region, self._has_region = None, False

    def _placed(self, model: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device or pinned, while there is room; else as it is, mapped from its file."""
        for device, taken in self._taken.items():
            if tensor.nbytes <= self.placement.device // len(self._taken) - taken:
                self._taken[device] += tensor.nbytes
                self.device_bytes += tensor.nbytes
                return tensor.to(device)
        return self._pinned(model, name, tensor) if self.device.type == "cuda" and self.placement.host else tensor

    def _pinned(self, model: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in memory that all workers of the machine have pinned, or pinned for this one alone."""
        if self._region is None and self._has_region:
            self._region = open_region(self.pool, int(free_memory(torch.device("cpu")) * HOST_SHARE))
            self._has_region = self._region is not None
        stored = self.pool.checkpoints[model].stored(self.pool.stored[model][name])
        if self._region is not None and stored is not None:
            kept = self._region.pinned(stored, tensor)
            if kept is not None or self._region.works:
                return tensor if kept is None else kept
        if tensor.nbytes <= self.placement.host - self.host_bytes:
            self.host_bytes += tensor.nbytes
            return tensor.pin_memory()
        return tensor


def free_memory(device: torch.device) -> int:
    """Bytes free on a device; for the CPU in main memory, within the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()
