"""Folders of libraries that environment variables put where none can be: the variable is named, not who needed it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import ConfigError, causes

VARIABLES = (
    *("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_HOME"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_HOME", "NUMBA_CACHE_DIR", "RAY_TMPDIR", "MPLCONFIGDIR"),
    *("TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
)
"""Places of what libraries keep: the narrower before those that they follow from."""


def misplaced(error: BaseException, environment: Mapping[str, str] | None = None) -> ConfigError | None:
    """The error to show for one that a folder caused which a variable names and which is none; ``None`` for another.

    Args:
        error: what was raised; its causes are looked at too.
        environment: the process's for ``None``.
    """
    variables = os.environ if environment is None else environment
    for found in causes(error):
        if isinstance(found, OSError) and isinstance(found.filename, str):
            for name in VARIABLES:
                place = variables.get(name, "")
                if place and _is_below(found.filename, place) and not _is_usable(place):
                    said = ConfigError(
                        f"the environment variable {name} is {place!r}, where {found.filename!r} cannot be made: "
                        f"{found.strerror}",
                        "a folder that can be written",
                        f"set {name} to one, or leave it unset",
                    )
                    said.__cause__ = error
                    return said
    return None


def _is_below(path: str, folder: str) -> bool:
    whole = Path(os.path.abspath(path))
    return whole.is_relative_to(os.path.abspath(os.path.expanduser(folder)))


def _is_usable(folder: str) -> bool:
    place = os.path.expanduser(folder)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
