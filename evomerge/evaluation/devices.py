"""Which device a worker computes on, and what it may take of its memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from evomerge.errors import ConfigError, reason_of
from evomerge.merge.resident.spread import SPREAD

_POLL = 0.5  # seconds between two looks at the free memory
_LOOKS = 3  # one after the other without a change: what is taken stays so
_LONGEST = 30.0  # seconds
_NEARLY_ALL = 0.9


def choose_device(device: str) -> str:
    """``auto`` becomes the first accelerator there is; ``spread`` is all GPUs together; anything else is checked.

    Raises:
        ConfigError: the device is unknown to torch or not on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = _kind_of(device)
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = f"this machine has {count or 'no'} GPU{'s' * (count > 1)} that torch can use"
        if not count or (device != SPREAD and (torch.device(device).index or 0) >= count):
            raise _no_such(device, there if count < 2 else f"{there}: cuda:0 to cuda:{count - 1}")
        if device == SPREAD:
            return device
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each backend raises what it likes
        reason = "this machine has none" if kind == "mps" else f"torch cannot use it here: {reason_of(error, 120)}"
        raise _no_such(device, reason) from error
    return device


def check_device(settings: Mapping[str, Any], here: bool) -> None:
    """Check the device of an evaluator's configuration before anything is loaded.

    Args:
        settings: of the evaluator. One that counts with a pretended GPU may name a device that is not there.
        here: whether its worker is in this process; others may be on machines with other devices.

    Raises:
        ConfigError: as for `choose_device`.
    """
    device = settings.get("device")
    if not isinstance(device, str) or device == "auto":
        return
    if here and settings.get("gpu") is None:
        choose_device(device)
    else:
        _kind_of(device)


def _kind_of(device: str) -> str:
    """The type of a device: ``cuda`` for all GPUs; `ConfigError` for what torch does not know."""
    try:
        kind = "cuda" if device == SPREAD else torch.device(device).type
    except RuntimeError as error:
        raise _no_such(device, "it is no device") from error
    if kind == "meta":
        raise _no_such(device, "it computes no numbers")
    return kind


def _no_such(device: str, reason: str) -> ConfigError:
    return ConfigError(f"evaluator.device is {device!r}: {reason}", "auto, cpu, cuda, cuda:1, mps, or spread")


def idle_gpus(device: str) -> str:
    """What to say of GPUs that one worker in this process leaves idle; empty where it does not."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2 or device not in ("auto", "cuda"):
        return ""
    return (
        f"evaluator=local uses one of {count} GPUs: evaluator=ray evaluator.workers={count} uses all, "
        f"CUDA_VISIBLE_DEVICES=0 means this one, and evaluator.device=spread is for a model larger than one"
    )


def computes_on_host(settings: Mapping[str, Any]) -> bool:
    """Whether the workers of an evaluator's configuration compute on the processor, as far as this machine shows."""
    if settings.get("engine") == "server":
        return True
    device = str(settings.get("device", "auto"))
    if device != "auto":
        return device == "cpu"
    if settings.get("gpus_per_worker") is not None:
        return not float(settings["gpus_per_worker"])
    return settings.get("gpu") is None and not torch.cuda.is_available()


def gpus_of_worker(settings: Mapping[str, Any]) -> int | None:
    """Over how many GPUs the workers of an evaluator's configuration spread a model; 1 where they do not.

    ``None`` for all that there are where there are none here.
    """
    device, given = str(settings.get("device", "auto")), settings.get("gpus_per_worker")
    if "gpus_per_worker" in settings:  # workers see what Ray gives them
        return max(1, int(given or 1)) if device in ("auto", SPREAD) else 1
    if device != SPREAD:
        return 1
    return torch.cuda.device_count() if torch.cuda.is_available() else None


def await_memory(device: str) -> None:
    """Wait while a GPU's memory is being given back: of a worker that was ended just now the driver still holds it.

    Args:
        device: where a worker begins; nothing happens unless it is a GPU, and one that others have memory of.
    """
    if torch.device("cuda" if device == SPREAD else device).type != "cuda":
        return
    end, seen, same = time.monotonic() + _LONGEST, -1, 0
    while same < _LOOKS and time.monotonic() < end:
        free, total = torch.cuda.mem_get_info()
        if free >= _NEARLY_ALL * total:
            return
        same = same + 1 if free <= seen else 0
        seen = free
        time.sleep(_POLL)
