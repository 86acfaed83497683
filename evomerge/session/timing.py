"""How long a small computation takes here, for estimates of large ones."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_TURNS = 5
_AGAIN = 0.1  # seconds of turns, after which none is added


def least_seconds(compute: Callable[[], object], device: torch.device) -> float:
    """The shortest of some turns: a machine that does other things takes longer, never less.

    Args:
        compute: is called once for each turn.
        device: where it computes: of a CPU the time of this thread counts, of a GPU that until all of it is done.
    """
    turns = [_seconds(compute, device)]
    while len(turns) < _TURNS and sum(turns) < _AGAIN:
        turns.append(_seconds(compute, device))
    return min(turns)


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.thread_time()
        compute()
        return time.thread_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    compute()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
