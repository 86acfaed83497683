"""What several fitnesses say, as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def joined(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All entries; of equal names the last."""
    return {name: value for mapping in mappings for name, value in mapping.items()}


def sums(mappings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """By name the sum over the mappings that have it."""
    found: dict[str, float] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            found[name] = found.get(name, 0.0) + value
    return found
