"""Values of a user's mapping, each checked for what it may be, with its key in every message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError, nearest


def require_keys(value: Mapping[str, Any], known: Sequence[str], key: str, of_all: Sequence[str] = ()) -> None:
    """Raise `ConfigError` for a key that there is not, with the nearest that there is.

    Args:
        value: of the user.
        known: keys that it may have.
        key: where it stands.
        of_all: keys that hold for the whole fitness, and stand beside `key` in place of in it.
    """
    for name in value:
        if name not in known and name in of_all:
            raise ConfigError(
                f"{key} has the key {name!r}, which holds for all tasks", "", f"give {name}=... beside the tasks"
            )
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
