"""What carries a mix out: decided here, once for a device, and nowhere else."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterable
from enum import Enum, auto

import torch

from evomerge.errors import EvomergeWarning, reason_of
from evomerge.merge.mixes.cpu_mix import KINDS
from evomerge.models.memory import out_of_memory


class Backend(Enum):
    """What carries a mix out; results have the same bits whichever it is.

    Attributes:
        CPU: the compiled kernels (`cpu_mix`).
        TRITON: kernels that Triton compiles (`triton_mix`).
        TORCH: torch operations one after the other (`torch_mix`).
    """

    CPU = auto()
    TRITON = auto()
    TORCH = auto()


def backend_of(device: torch.device, dtypes: Iterable[torch.dtype]) -> Backend:
    """What carries mixes of tensors of these dtypes out on a device, where all of them are."""
    if all(dtype in KINDS for dtype in dtypes):
        if device.type == "cpu":
            return Backend.CPU
        if device.type == "cuda" and _has_triton(device):
            return Backend.TRITON
    return Backend.TORCH


@functools.cache
def _has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a GPU and make there, of a small example, the bits of torch operations.

    Triton needs more than its package: a compiler for C, headers, a folder to write to. What it lacks is said once.
    """
    if torch.version.cuda is None or not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    try:
        from evomerge.merge.mixes.triton_mix import agrees_with_torch

        if agrees_with_torch(device):
            return True
        reason = "its result for an example is not that of torch operations; Triton 3.6 or newer is needed"
    except Exception as error:  # compilers, loaders and drivers raise whatever they raise
        if out_of_memory(error):  # says nothing of Triton: asked again once something was let go
            raise
        reason = reason_of(error)
    warnings.warn(
        f"merging on {device} without fused kernels, slower and with the same result: Triton cannot be used ({reason})",
        EvomergeWarning,
        stacklevel=2,
    )
    return False
