"""The files of per-item scores: one for each evaluation, named by the event that it belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from evomerge.candidate import Items, Split
from evomerge.run.folder import RunFolder, items_texts
from evomerge.run.ledger_file import LedgerError
from evomerge.utils.files import read_bounded, write_text_atomic

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


_log = logging.getLogger(__name__)

MOST_ITEMS = 2000
MOST_CHARACTERS = 1200
MOST_BYTES = 16 * 2**20

Texts = Mapping[str, Sequence[Mapping[str, str]]]


def write_texts(folder: RunFolder, split: Split, fitness: Any) -> None:
    """Write down what a fitness says of its items; nothing where it cannot, which is no failure of the run."""
    name = getattr(fitness, "texts", None)
    if name is None:
        return
    try:
        found = {task: [_short(item) for item in items] for task, items in name(MOST_ITEMS).items()}
        text = json.dumps({"evomerge_texts": 1, "tasks": found}, ensure_ascii=False)
        if len(text) < MOST_BYTES // 4:  # of four bytes each at most
            write_text_atomic(items_texts(folder, split), text + "\n")
    except Exception as error:
        _log.warning("the texts of the %s items were not written: %s: %s", split, type(error).__name__, error)


def read_texts(folder: RunFolder, split: Split) -> dict[str, list[dict[str, str]]]:
    """The texts by task; empty where there are none, or the file is not one that `write_texts` wrote."""
    path = items_texts(folder, split)
    try:
        content = json.loads(read_bounded(path, MOST_BYTES))
        tasks = content["tasks"] if content["evomerge_texts"] == 1 else {}
        return {
            str(task): [{"prompt": str(item["prompt"]), "target": str(item["target"])} for item in items]
            for task, items in tasks.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _short(item: Mapping[str, str]) -> dict[str, str]:
    """Prompts end with the question, so that of long ones the end stays."""
    prompt, target = str(item.get("prompt", "")), str(item.get("target", ""))
    if len(prompt) > MOST_CHARACTERS:
        prompt = "…" + prompt[1 - MOST_CHARACTERS :]
    return {"prompt": prompt, "target": target[:MOST_CHARACTERS]}
