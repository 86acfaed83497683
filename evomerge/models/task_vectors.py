"""Lengths and angles of a pool's task vectors, read once and remembered by the models' fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import OutputError, PoolError
from evomerge.models.pool import Pool
from evomerge.recipes.differences import Differences
from evomerge.utils.files import read_bounded, write_text_atomic

FORMAT = 1
_BLOCK = 2**18  # elements at once: 2 MB of float64 a model
_MOST = 2**26  # bytes of what is remembered

Watch = Callable[[int, int], None]
"""Told how many slices are read, of how many."""


def known_differences(pool: Pool) -> Differences | None:
    """The task vectors' lengths and angles, where they were measured before; ``None`` where models would be read."""
    return None if pool.info.base is None or pool.info.uneven else _remembered(_place(pool), pool)


def differences_of(pool: Pool, watch: Watch | None = None) -> Differences:
    """The task vectors' lengths and angles, from memory or by reading every model once, tensor by tensor.

    Args:
        pool: with a base; all models of one depth.
        watch: told of the progress of reading.

    Raises:
        PoolError: a file cannot be read; no base, or models that differ in depth.
    """
    if pool.info.base is None:
        raise PoolError("the pool has no base", "task vectors are differences from one", "set pool.base")
    if pool.info.uneven:
        raise PoolError(pool.info.uneven, "task vectors are of models of one depth")
    place = _place(pool)
    known = _remembered(place, pool)
    if known is None:
        known = _measured(pool, watch)
        _remember(place, known)
    return known


def _measured(pool: Pool, watch: Watch | None) -> Differences:
    base, models = str(pool.info.base), pool.info.sources
    norms, products = np.zeros(len(pool.info.slices)), np.zeros((len(pool.info.slices), len(models), len(models)))
    for number, slice_ in enumerate(pool.info.slices):
        for name in pool.layout.tensors[slice_]:
            if not pool.is_merged(name):
                continue
            flat = [pool.read(model, name).view(-1) for model in (base, *models)]
            for start in range(0, len(flat[0]), _BLOCK):
                block = [tensor[start : start + _BLOCK].double().numpy() for tensor in flat]
                task = np.stack([own - block[0] for own in block[1:]])
                norms[number] += block[0] @ block[0]
                products[number] += task @ task.T
        pool.unmap()
        if watch is not None:
            watch(number + 1, len(pool.info.slices))
    pool.release()
    if not (np.isfinite(norms).all() and np.isfinite(products).all()):
        raise PoolError("a model of the pool has weights that are not finite", "models whose weights are numbers")
    return Differences(models, pool.info.slices, norms, products)


def _place(pool: Pool) -> Path:
    """Where what is known of these models is, whatever they are called and wherever they lie."""
    refs = dict(pool.info.refs)
    own = [FORMAT, *(refs[name].identity for name in (str(pool.info.base), *pool.info.sources))]
    own += [str(slice_) for slice_ in pool.info.slices]
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "evomerge" / "differences" / f"{digest[:32]}.json"


def _remembered(place: Path, pool: Pool) -> Differences | None:
    try:
        content: Any = json.loads(read_bounded(place, _MOST))
        base = np.array(content["base"], dtype=np.float64)
        products = np.array(content["products"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    slices, models = len(pool.info.slices), len(pool.info.sources)
    if base.shape != (slices,) or products.shape != (slices, models, models):
        return None
    if not (np.isfinite(base).all() and np.isfinite(products).all()):
        return None
    return Differences(pool.info.sources, pool.info.slices, base, products)


def _remember(place: Path, found: Differences) -> None:
    """For the next time; where that cannot be written, they are read again."""
    text = json.dumps({"base": found.base.tolist(), "products": found.products.tolist()})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(place, text + "\n")
    except (OSError, OutputError, RuntimeError):
        return
