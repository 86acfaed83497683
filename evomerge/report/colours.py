"""One colour for each model of a run, the same in every picture and terminal."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = ("#3b6fb6", "#d9822b", "#2f8f5b", "#a3488f", "#b8a12e", "#4aa3b5", "#c0504d", "#7a7a7a")


def colour(source: str, sources: Sequence[str]) -> str:
    """The colour of a source."""
    return COLOURS[sources.index(source) % len(COLOURS)]
