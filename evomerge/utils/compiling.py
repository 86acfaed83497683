"""How loops are compiled, and where the machine code is kept between processes."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, without fast-math: the bits are those of IEEE arithmetic in the order written.

    The machine code is kept in the user's cache folder, under a hash of the source of all modules beside the function's
    own: numba itself looks at the file of the outermost function only, and would go on using code whose callees, which
    belong there, have changed.
    """
    folder = _cache_folder(Path(function.__code__.co_filename).parent)
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder or previous
    try:
        return numba.njit(nogil=True, cache=bool(folder), error_model="numpy", boundscheck=False)(function)
    finally:
        numba.config.CACHE_DIR = previous


@functools.cache
def _cache_folder(sources: Path) -> str:
    """A folder that can be written, or nothing."""
    digest = hashlib.sha256(numba.__version__.encode())
    for file in sorted(sources.glob("*.py")):
        digest.update(file.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "evomerge" / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""
