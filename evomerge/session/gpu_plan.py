"""Where the sources of a search go on a GPU of some size, what is left for forwards, and what copies take.

Nothing of it is measured: a worker divides by the same rules what its first scored candidate has left.
"""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.merge.execution.sources import HOST_SHARE
from evomerge.merge.resident.budgets import divide, share_of
from evomerge.models.memory import MORE_GPUS
from evomerge.utils.sizes import size_text

PINNED, MAPPED = 25e9, 5e9
"""Bytes a second from pinned and from mapped host memory, assumed: PCI Express 4.0 with 16 lanes."""

UNKNOWN = 0.1
"""Of a worker's share: what forwards are taken to need where the fitness cannot say."""


@dataclass(frozen=True)
class GpuPlan:
    """What one worker does with its share of a GPU, or with several.

    Attributes:
        gpu: bytes of a GPU.
        gpus: how many the worker has, over which its model is spread.
        sharing: workers that share a GPU.
        weights: bytes of the model.
        left: bytes that are left for forwards when nothing else is kept, of several GPUs as many times what the fullest
            has; negative where the model does not fit.
        forwards: bytes that they are estimated to need; `known` where the fitness says so.
        sources: bytes of all source models.
        device, pinned, mapped: of these, bytes on the device, in pinned memory and read from files.
        staging: bytes of the device that sources are copied into ahead of their merge.
        notes: bytes of host memory for what is noted of the sources, and `device_notes` on the device.
        cache: bytes of merged slices that may be kept.
        states: bytes of hidden states that may be.
    """

    gpu: int
    gpus: int
    sharing: int
    weights: int
    left: int
    forwards: int
    known: bool
    sources: int
    device: int
    pinned: int
    mapped: int
    staging: int
    notes: int
    device_notes: int
    cache: int
    states: int

    @property
    def copied(self) -> int:
        """Bytes that a candidate copies which changes every slice."""
        return self.pinned + self.mapped

    @property
    def seconds(self) -> float:
        """That these copies take."""
        return self.pinned / PINNED + self.mapped / MAPPED

    def lines(self) -> list[str]:
        """All of it, for people."""
        own = f"a share of 1/{self.sharing} of " if self.sharing > 1 else ""
        own = f"{self.gpus} GPUs of " if self.gpus > 1 else own
        if self.left <= 0:
            more = MORE_GPUS if self.gpus == 1 else f"give a worker more than {self.gpus} (evaluator.gpus_per_worker)"
            return [f"{size_text(self.weights)} of weights do not fit into {own}{size_text(self.gpu)}: {more}"]
        need = f"they need about {size_text(self.forwards)}" if self.known else "what they need is not known"
        first = f"{own}{size_text(self.gpu)}: {size_text(self.weights)} of weights, {size_text(self.left)} left for "
        lines = [f"{first}forwards ({need})"]
        if self.forwards > self.left // self.gpus:
            lines.append("a batch does not fit: it will be halved, lower batch_size")
        places = {"on the device": self.device, "pinned": self.pinned, "mapped from their files": self.mapped}
        where = ", ".join(f"{size_text(nbytes)} {place}" for place, nbytes in places.items() if nbytes)
        lines.append(f"sources: {where}")
        if self.copied:
            rates = f"{PINNED / 1e9:g} GB/s pinned, {MAPPED / 1e9:g} GB/s mapped"
            ahead = f", while it is merged, into {size_text(self.staging)} of the GPU" if self.staging else ""
            lines.append(
                f"a candidate that changes every slice copies {size_text(self.copied)}: about {self.seconds:.1f} s "
                f"({rates}, assumed){ahead}"
            )
        else:
            lines.append("no candidate copies any")
        return lines


def plan_gpu(
    gpu: int,
    sharing: int,
    weights: int,
    forwards: int | None,
    sources: int,
    host: int,
    layer: int = 0,
    workers: int = 1,
    gpus: int = 1,
    piece: int = 0,
) -> GpuPlan:
    """The plan of one worker.

    Args:
        gpu: bytes of a GPU.
        sharing: workers that share one.
        weights: bytes of the model.
        forwards: bytes that its largest forward needs; ``None`` where nobody says.
        sources: bytes of all source models.
        host: free bytes of main memory for each of the machine's workers.
        layer: bytes of the slice of a layer that has most, from every source.
        workers: of the machine, which share what is pinned.
        gpus: how many the worker has; its model is spread over them, and so is what it keeps.
        piece: bytes of the largest layer: by so much more weights may lie on one of several GPUs than on the others.
    """
    share = share_of(gpu, sharing)
    need = int(UNKNOWN * share) if forwards is None else forwards
    most = weights if gpus == 1 else weights // gpus + piece  # weights on one GPU
    # As a worker measures it (`budgets.room_on`): the least that is left on any. Each of them has a forward's largest
    # part in turn.
    found = divide(gpus * max(0, share - most - need), host, sources, layer)
    device = found.placement.device
    pinned = min(sources - device, int(host * workers * HOST_SHARE))
    return GpuPlan(
        gpu,
        gpus,
        sharing,
        weights,
        gpus * (share - most),
        need,
        forwards is not None,
        sources,
        device,
        pinned,
        sources - device - pinned,
        found.placement.staging,
        found.placement.notes,
        found.placement.device_notes,
        found.cache,
        found.states,
    )


def fewest_gpus(gpu: int, weights: int, forwards: int | None, piece: int) -> int:
    """How many GPUs hold a model and its forwards, at least; arguments as of `plan_gpu`."""
    share = share_of(gpu, 1)
    need = int(UNKNOWN * share) if forwards is None else forwards
    if weights + need <= share or share <= piece + need:  # one does, or no number of them
        return 1
    return -(-weights // (share - piece - need))
