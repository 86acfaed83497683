"""What it looks like when memory has run out or a device has gone, and what can be done at once."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from evomerge.errors import DeviceLostError, NoMemoryError, reason_of

MORE_GPUS = "let several GPUs hold a model (evaluator.device=spread, or evaluator=ray evaluator.gpus_per_worker=2)"

_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",  # CUBLAS, CUDNN, CUSOLVER
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its workspace found no room
    "CUDNN_STATUS_NOT_INITIALIZED",
)
_DEEPEST = 20  # of errors that caused each other
_DEVICE_ERRORS = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "HIP error", "device-side assert")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device had no memory left: torch raises different ones for each."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one of CUDA other than memory that ran out.

    After one, a process has no working context any more: each later call fails, within milliseconds.
    """
    found: BaseException | None = error
    for _ in range(_DEEPEST):
        if found is None:
            break
        if type(found).__name__ == "EngineDeadError":  # vLLM's: its processes are gone
            return True
        if isinstance(found, RuntimeError) and not out_of_memory(found):
            accelerator = getattr(torch, "AcceleratorError", None)  # since torch 2.8
            if accelerator is not None and isinstance(found, accelerator):
                return True
            if any(text in str(found) for text in _DEVICE_ERRORS):
                return True
        found = found.__cause__ or found.__context__
    return False


def lost(error: BaseException) -> DeviceLostError:
    """The error to raise for one that `device_lost` knows."""
    return DeviceLostError(
        f"the GPU or the engine on it failed and its process cannot use it any more ({reason_of(error)})",
        "a GPU that works, and code that does not stop it",
        "`evomerge resume RUN` goes on; evaluator=ray evaluator.workers=1 replaces such a worker by itself",
    )


def no_room(error: BaseException, what: str, device: torch.device) -> NoMemoryError:
    """The error to raise where memory has run out for good, with what to set.

    Args:
        error: the last of those that `out_of_memory` knows.
        what: the work that there is no memory for.
        device: that it was done on; memory may have run out on the host all the same.
    """
    more = "shorter texts (fitness.max_length, max_gen_toks) and fewer workers of a machine take less"
    if device.type == "cuda":
        more = f"{MORE_GPUS}, or fewer workers share one (evaluator.gpus_per_worker=1); {more}"
    return NoMemoryError(
        f"there is no memory {what}, with all let go that is kept to save time ({reason_of(error, 200)})",
        "room for the model's weights, for a slice that is merged beside them, and for the smallest batch",
        more,
    )


class Retries:
    """Whether to do at once again what found no memory: after something was let go, and once with nothing to let go.

    The last time because memory that is free may lie in pieces, or have been another's for a moment: `give_back` mends
    that, and work done again in smaller pieces would round differently for ever.

    Args:
        spare: as of `evomerge.models.loaded.LoadedModel`.
    """

    def __init__(self, spare: Callable[[], bool]) -> None:
        self._spare, self._as_it_is = spare, True

    def again(self) -> bool:
        """Whether to try again as before; to be asked outside the error's handler, which holds on to its frames."""
        found = self._spare()
        if not found:
            found, self._as_it_is = self._as_it_is, False
        give_back()
        return found


def give_back() -> None:
    """Let go of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
