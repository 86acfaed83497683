"""The values that a gene takes, where they are few."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.genome import Gene, Value

Array = NDArray[np.float64]

GRID = 100
"""Numbers on a grid of at most so many values count as values; finer grids are numbers."""


def values_of(gene: Gene) -> Array | None:
    """The values of a gene that is a whole number or on a coarse grid; ``None`` for other numbers; one for choices."""
    if gene.kind in ("categorical", "boolean") or gene.low == gene.high:
        return np.zeros(1)
    if gene.kind == "integer":
        return np.arange(math.ceil(gene.low), math.floor(gene.high) + 1, dtype=np.float64)
    if gene.resolution is None or (gene.high - gene.low) / gene.resolution > GRID - 1:
        return None
    steps = math.floor((gene.high - gene.low) / gene.resolution + 1e-9)
    return np.asarray(gene.low + gene.resolution * np.arange(steps + 1), dtype=np.float64)


def choices_of(gene: Gene) -> tuple[Value, ...]:
    """The choices of a categorical or boolean gene, none for numbers."""
    return gene.choices if gene.kind == "categorical" else (False, True) if gene.kind == "boolean" else ()
