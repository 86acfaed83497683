"""Sizes in bytes as people read and write them."""

from __future__ import annotations

import re

from evomerge.errors import ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def byte_count(size: str | int, key: str, *, least: int = 1, words: str = "") -> int:
    """Read ``5GB``, ``500MB`` or a number of bytes.

    Args:
        size: what is given.
        key: where.
        least: the smallest that makes sense.
        words: what may be given as well, for messages.

    Raises:
        ConfigError: it is no size, or less than `least`; names `key`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", str(size).strip().upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") and len(unit) == 2 else f"{unit.rstrip('B')}B" if unit.rstrip("B") else ""
    if match is None or int(float(match[1]) * _UNITS[unit]) < least:
        raise ConfigError(f"{key} is {size!r}", f"{words}{', or ' if words else ''}a size such as 5GB or 500MB")
    return int(float(match[1]) * _UNITS[unit])


def size_text(nbytes: float) -> str:
    """Three digits and a unit: ``12 kB``, ``3.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
