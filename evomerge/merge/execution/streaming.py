"""Slices merged piece by piece for writing: memory does not grow with the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from evomerge.merge.execution.engine import SliceMerge
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.models.pool import Pool

WINDOW = 1 << 28
"""Bytes of the mapped sources that may be in memory at a time."""

PIECE = 1 << 20
"""Elements of a piece: it stays in the cache until it is written."""

Piece = tuple[str, int, torch.Tensor]
"""A tensor's name, where in it the piece begins, and the piece, flat."""


@torch.no_grad()
def stream_slice(
    plan: SlicePlan,
    pool: Pool,
    device: str | torch.device = "cpu",
    window: int = WINDOW,
    size: int = PIECE,
    notes: Notes | None = None,
) -> Iterator[Piece]:
    """The tensors of one output slice in pieces, one after the other; the same bits as `engine.merge_slice` gives.

    On the CPU, no more than `window` bytes of the sources and a piece of the result are in memory. Exceptions: methods
    that only work on whole tensors, neither mixes nor elementwise, take a few times the largest tensor as float32; what
    is no mapped file is whole in memory: intermediates, tensors with an adapter folded in or not aligned in their file.

    Args:
        plan: the slice's plan.
        pool: the source models.
        device: where to merge; on accelerators, tensors are merged whole.
        window: bytes.
        size: elements of a piece. Neither changes the result.
        notes: to be shared by the slices of a model: what ranks over the whole model looks at it once.

    Raises:
        EvomergeError: a tensor cannot be read or merged; it is named.
    """
    # Every tensor is read once: none is worth keeping longer than its slice.
    sources = Sources(pool, device, Placement(0, 0, 0), notes=notes)
    merge = SliceMerge(plan, pool, sources, window_bytes=window)
    memory = torch.empty(size, dtype=merge.dtype, device=sources.device)
    touched = 0
    for part in plan.parts:
        width = 4 * (len(part.sources) + (part.base is not None))
        for index in part.tensors:
            name, copy = plan.tensors[index], merge.copied(index)
            if copy is not None:
                yield name, 0, copy.reshape(-1)
                continue
            count = math.prod(pool.layout.shapes[plan.like[index]])
            if touched + count * width > window:  # statistics pass over the whole tensor before its first piece
                pool.unmap()
                touched = 0
            with merge.naming(index):
                job = merge.merge(part, index)
                if not job.divisible or sources.device.type != "cpu":
                    whole = torch.empty(count, dtype=merge.dtype, device=sources.device)
                    job.run(whole)
                    yield name, 0, whole
                    touched += count * width
                    continue
                for begin in range(0, count, size):
                    piece = memory[: min(size, count - begin)]
                    job.run(piece, begin)
                    yield name, begin, piece
                    touched += piece.numel() * width
                    if touched >= window:
                        pool.unmap()
                        touched = 0
    pool.release()
    pool.unmap()
