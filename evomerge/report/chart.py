"""A curve in braille dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, from its top


def range_of(curve: Sequence[float]) -> tuple[float, float]:
    """The least and the largest finite value; zeros where there is none."""
    finite = [value for value in curve if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def chart_of(curve: Sequence[float], width: int, height: int) -> list[str]:
    """The curve in dots, two to a column and four to a line, the highest line first; steps are joined."""
    low, high = range_of(curve)
    if width < 10 or low == high:
        return []
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column in range(2 * width):
        value = curve[min(len(curve) - 1, column * len(curve) // (2 * width))]
        if not math.isfinite(value):
            continue
        level = round((value - low) / (high - low) * (4 * height - 1))
        first = level if before is None else before + (1 if level > before else -1 if level < before else 0)
        for dot in range(min(first, level), max(first, level) + 1):
            line, place = divmod(4 * height - 1 - dot, 4)
            cells[line][column // 2] |= _DOTS[place][column % 2]
        before = level
    return ["".join(chr(0x2800 + cell) for cell in line) for line in cells]
