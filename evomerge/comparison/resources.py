"""The largest memory that a process held while it merged and scored a candidate, noted beside the ledger."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evomerge.run.ledger_file import Event
from evomerge.utils.files import write_text_atomic

FILE = "memory.json"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Notes, for every candidate that is told, the peak since the one before; an `observers.Observer`.

    On the processor that is the resident memory of the process (Linux), everything in it counted: interpreter,
    libraries, models. On CUDA GPUs it is what torch had allocated. Of an evaluator whose workers are other processes
    nothing can be said, and nothing is noted.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._known = read_peaks(folder)
        _begin()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if event["event"] != "told":
            return
        found = peak()
        if found:
            self._known[int(event["candidate"])] = found
            write_text_atomic(self._file, json.dumps(self._known), sync=False)
        _begin()


def read_peaks(folder: Path) -> dict[int, int]:
    """Bytes by candidate; empty where nothing was noted, or the file is not one of ours."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {int(key): int(value) for key, value in content.items() if value > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def peak() -> int:
    """Bytes at the peak since `_begin`: of GPUs where torch uses any, else resident; 0 where that is not known."""
    on_gpus = sum(_cuda("max_memory_allocated"))
    return on_gpus or _resident()


def _begin() -> None:
    """Forget the peak so far."""
    _cuda("reset_peak_memory_stats")
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or not allowed: peaks are then those since the process began
        return


def _cuda(name: str) -> list[int]:
    """What a function of ``torch.cuda`` says of every GPU that torch has begun to use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [getattr(torch.cuda, name)(device) or 0 for device in range(torch.cuda.device_count())]


def _resident() -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("VmHWM:")), "")
    return 1024 * int(found.split()[1]) if found else 0
