"""Files of calibration: written whole or not at all, in folders that one process holds at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from evomerge.errors import OutputError
from evomerge.utils.files import sync_file, sync_folder


def save(path: Path, tensors: dict[str, torch.Tensor], state: Any) -> None:
    """Write tensors and one line of metadata (several come in any order), all of it or nothing.

    Args:
        path: in a folder that this process holds.
        tensors: contiguous, on the CPU.
        state: plain values.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # whoever writes holds the lock
    try:
        save_file(tensors, str(temporary), metadata={"state": json.dumps(state)})
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error}", "a folder with room", "free some space") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, if it is not there, and hold it; waits for another process that does.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}", "", "set EVOMERGE_CACHE to another") from error
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
