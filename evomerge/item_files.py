"""The files of per-item scores: one for each evaluation, named by the event that it belongs to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from evomerge.candidate import Items, Split
from evomerge.ledger_file import LedgerError
from evomerge.run_folder import RunFolder
from evomerge.utils.files import read_bounded

_EXACT_DTYPES = (np.uint8, np.int16, np.float16, np.float32)
_MAX_ITEMS = 2**30  # bytes of per-item scores


def read_items(
    folder: RunFolder | Path, candidate: int, split: Split = "search", *, digest: str | None = None
) -> dict[str, NDArray[np.float64]]:
    """Per-item scores of one evaluation by ``task/metric``, float64 in document order.

    Args:
        folder: the run folder, or its path.
        candidate: the candidate's id.
        split: which items.
        digest: the event's `items_hash`, to check the file against.

    Raises:
        LedgerError: the file is missing, unreadable or not the one that the event speaks of.
    """
    path = (RunFolder(folder) if isinstance(folder, Path) else folder).items_file(candidate, split)
    try:
        data = read_bounded(path, _MAX_ITEMS, follow=False)
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise LedgerError(f"{path} does not match the hash in the ledger", "the file that the run wrote")
        arrays = safetensors.load(data)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LedgerError(f"{path} cannot be read: {reason}", "the file that the run wrote") from error
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise LedgerError(f"{path}: {name} is {values.dtype} of shape {values.shape}", "a list of numbers")
    return {name: arrays[name].astype(np.float64) for name in sorted(arrays)}


def items_bytes(items: Items) -> bytes:
    """Per-item scores as the content of their file."""
    data: bytes = safetensors.save({name: _compact(values) for name, values in items.items()})
    return data


def _compact(values: NDArray[np.float64]) -> NDArray[Any]:
    """The same values in the smallest dtype that holds them all exactly, NaN and the sign of zero included.

    Right or wrong (0 and 1) takes a byte per item; with items that were not run (NaN), two.
    """
    exact = np.ascontiguousarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        for dtype in _EXACT_DTYPES:
            small = exact.astype(dtype)
            if small.astype(np.float64).tobytes() == exact.tobytes():
                return small
    return exact
