"""A merged slice in memory."""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass

import torch

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]
"""Shape and dtype of every tensor of a slice."""

ALIGNMENT = 64
"""Bytes that the addresses of tensors are multiples of, as torch allocates them: what reads them may round by it."""


def size_of(shapes: Shapes) -> int:
    """Bytes of tensors of these shapes."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)


@dataclass
class Merged:
    """The tensors of a slice, and what they took.

    Attributes:
        tensors: in the slice's order, without names: a slice may serve another layer.
        cost: seconds that computing them took; 0 for what need not be computed.
        owned: whether the memory is the worker's own, to be used again; mapped files and sources are not.
    """

    tensors: tuple[torch.Tensor, ...]
    cost: float = 0.0
    owned: bool = True

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def shapes(self) -> Shapes:
        """Shapes and dtypes of the tensors."""
        return tuple((tuple(tensor.shape), tensor.dtype) for tensor in self.tensors)


_HUGE = 1 << 21  # bytes of a large page


def _huge(count: int) -> torch.Tensor | None:
    """Memory in large pages, where the system has them: small ones take longer to get than a merge to fill."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    # Shared memory, which is what Python maps unless told otherwise, has no large pages on most systems.
    pages = mmap.mmap(-1, (count // _HUGE + 2) * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    skipped = -memory.data_ptr() % _HUGE
    return memory[skipped : skipped + count]


def allocate(shapes: Shapes, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Tensors in one piece of memory."""
    starts, end = [], 0
    for shape, dtype in shapes:
        starts.append(end)
        end += -(-torch.Size(shape).numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    memory = _huge(end) if device.type == "cpu" and end >= _HUGE else None
    if memory is None:
        memory = torch.empty(end, dtype=torch.uint8, device=device)
    return tuple(
        memory[start : start + torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)
        for start, (shape, dtype) in zip(starts, shapes, strict=True)
    )
