"""What several processes do to a shared cache at once; run by ``test_shared_cache``."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch

from evomerge.merge.cache.merged_slice import ALIGNMENT, Merged
from evomerge.merge.cache.shared_cache import SharedCache


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def slice_of(key: str, cost: float = 1e-9) -> Merged:
    """A slice that anyone can tell from its key: odd sizes, several dtypes."""
    seed = int(key[:7], 16)
    wide = torch.arange(4000 + seed % 5000) * 3 + seed % 1000
    narrow = (torch.arange(seed % 333 + 1) % 100 + seed % 7).to(torch.bfloat16)
    return Merged((wide.float(), narrow, torch.tensor(seed), (wide % 11).to(torch.float16).view(-1, 1)), cost)


def is_right(key: str, merged: Merged) -> bool:
    """Whether these are the tensors of a key, all of them."""
    expected = slice_of(key)
    return merged.shapes == expected.shapes and all(
        torch.equal(a, b) and a.data_ptr() % ALIGNMENT == 0
        for a, b in zip(merged.tensors, expected.tensors, strict=True)
    )


def stored(folder: Path) -> int:
    """Bytes of all published files."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".safetensors"):
                    total += entry.stat().st_size
    except FileNotFoundError:
        pass
    return total


def use(folder: str, budget: int, seed: int, seconds: float) -> dict[str, int]:
    """Read and publish at random for a while, leaving and coming back now and then; returns what happened."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("hits", "published", "wrong", "most", "torn"), 0)
    cache, mapped = SharedCache(Path(folder), budget), list[tuple[str, Merged]]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        key = key_of(int(rng.integers(40)))
        found = cache.get(key)
        if found is None:
            counts["published"] += cache.offer(key, slice_of(key, float(rng.random())))
        else:
            counts["hits"] += 1
            counts["wrong"] += not is_right(key, found)
            mapped.append((key, found))
        if len(mapped) > 20:  # most have been evicted since
            counts["torn"] += sum(not is_right(*one) for one in mapped)
            mapped.clear()
        counts["most"] = max(counts["most"], stored(Path(folder)))
        if rng.random() < 0.01:
            cache.close()
            cache = SharedCache(Path(folder), budget)
    cache.close()
    return counts


def die(folder: str, budget: int, name: str) -> None:
    """Be killed while a file is written."""
    cache = SharedCache(Path(folder), budget)
    (cache.folder / name).write_bytes(b"half a file")
    os._exit(9)
