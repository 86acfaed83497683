"""Folders in the user's cache that are made once from something else, and found again by its digest."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from evomerge.errors import PoolError


def cache_root(kind: str) -> Path:
    """Where things of a kind are kept: ``$EVOMERGE_CACHE/KIND``, or evomerge's folder in the user's cache."""
    own = os.environ.get("EVOMERGE_CACHE")
    if own:
        return Path(own) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / kind


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is there, or is made now: complete or not there at all.

    Args:
        folder: its place; the name tells everything that its content depends on.
        make: fills a new, empty folder.

    Raises:
        PoolError: it cannot be written. What `make` raises is let through.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        make(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was as fast
                raise
    except OSError as error:
        raise PoolError(
            f"{folder} cannot be written ({error.strerror or error})",
            "a cache folder with room",
            "set EVOMERGE_CACHE to another folder, or free some space",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
