"""How kernels are compiled, and where the machine code is kept between processes."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, without fast-math: the bits are those of IEEE arithmetic in the order written.

    The machine code is kept in the user's cache folder, under a hash of all kernels' source: numba itself looks at the
    file of the outermost function only, and would go on using code whose callees have changed.
    """
    folder = _cache_folder()
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder or previous
    try:
        return numba.njit(nogil=True, cache=bool(folder), error_model="numpy", boundscheck=False)(function)
    finally:
        numba.config.CACHE_DIR = previous


@functools.cache
def _cache_folder() -> str:
    """A folder that can be written, or nothing."""
    digest = hashlib.sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "evomerge" / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


def _word_operation(instruction: str) -> Any:
    """One operation on two uint32 words; numba's own would widen them to 64 bits, and halve what a vector holds."""

    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(arguments[0], arguments[1])

        return types.uint32(types.uint32, types.uint32), build

    return operation


add, multiply, xor = _word_operation("add"), _word_operation("mul"), _word_operation("xor")
both, either, shift_right = _word_operation("and_"), _word_operation("or_"), _word_operation("lshr")
