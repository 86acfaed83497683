"""Values of a user's mapping, each checked for what it may be, with its key in every message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError, nearest


def require_keys(value: Mapping[str, Any], known: Sequence[str], key: str) -> None:
    """Raise `ConfigError` for a key that there is not, with the nearest that there is."""
    for name in value:
        if name not in known:
            raise ConfigError(f"{key} has no key {name!r}", nearest(str(name), known))


def finite(value: Any, key: str) -> float:
    """A finite number, or `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}", "a finite number")
    return float(value)


def whole(value: Any, key: str, least: int, most: int) -> int:
    """A whole number in a range, or `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{key} is {value!r}", f"a whole number from {least:,} to {most:,}")
    return value
