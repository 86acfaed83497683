"""A module with other buffers for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def with_buffers(module: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a module compute with other buffers within this; its own are neither written to nor copied.

    Args:
        module: a ``torch.nn.Module``.
        tensors: by the names of its buffers.
    """
    kept = {}
    try:
        for name, tensor in tensors.items():
            place, _, buffer = name.rpartition(".")
            part = module.get_submodule(place)
            kept[name] = part, buffer, part._buffers[buffer]
            part._buffers[buffer] = tensor
        yield
    finally:
        for part, buffer, own in kept.values():
            part._buffers[buffer] = own
