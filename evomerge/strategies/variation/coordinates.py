"""Genomes as points of the unit cube, for their numbers, and numbers of choices, for the rest."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.arrays import numbers
from evomerge.genomes.genome import Genome, GenomeSpec, Value

Array = NDArray[np.float64]
Spread = float | Literal["auto"] | None
"""How far from the start genomes are drawn: a standard deviation in units of a gene's range, ``auto`` for what each
gene says itself (`Gene.spread`), ``None`` for anywhere within bounds."""


class Coordinates:
    """What of a genome is free, as a strategy over real numbers and probabilities sees it.

    Every continuous or integer gene with more than one value is a coordinate from 0 to 1: continuous genes by their
    range, integer genes by intervals of equal length, one for each of their values. Categorical and boolean genes
    with more than one value are variables whose choices are numbered. All other genes keep their value.

    Attributes:
        names: of the free genes.
        number_names, choice_names: of those that are coordinates, and of those that are variables.
        start: coordinates of the spec's start.
        steps: the width in which a coordinate is one value: of a grid, or of a whole number; 0 where it is neither.
        counts: how many choices each variable has.
        spreads: the standard deviation of each coordinate at first; NaN where the gene does not say.
        changes: the probability that each variable is not as in the start, at first; NaN likewise.
    """

    def __init__(self, spec: GenomeSpec) -> None:
        self._spec = spec
        self._initial = spec.initial.values
        low, high = spec.bounds
        whole = [i for i, gene in enumerate(spec) if gene.kind == "integer"]
        low[whole], high[whole] = np.ceil(low[whole]), np.floor(high[whole])
        genes = spec.genes
        self._free = np.array(
            [i for i in np.flatnonzero(low < high) if genes[i].kind in ("continuous", "integer")], int
        )
        self._chosen = [i for i in np.flatnonzero(low < high) if genes[i].kind in ("categorical", "boolean")]
        self._low, self._span = low[self._free], (high - low)[self._free]
        self._whole = np.array([genes[i].kind == "integer" for i in self._free], bool)
        self._vector = all(gene.kind == "continuous" for gene in spec)
        self._fixed = np.array(self._initial if self._vector else (), dtype=np.float64)
        self.names = tuple(gene.name for gene, lo, hi in zip(spec, low, high, strict=True) if lo < hi)
        self.number_names = [genes[i].name for i in self._free]
        self.choice_names = [genes[i].name for i in self._chosen]
        self.counts = [len(genes[i].choices) or 2 for i in self._chosen]
        widths = np.where(self._whole, 1.0, [genes[i].resolution or 0.0 for i in self._free])
        scale = np.where(self._whole, self._span + 1, self._span)  # as many whole numbers as their difference and one
        self.steps: Array = widths / scale
        self.spreads: Array = np.array([genes[i].spread or np.nan for i in self._free], dtype=np.float64)
        self.spreads *= np.where(self._whole, self._span / scale, 1.0)
        self.changes: Array = np.array([genes[i].spread or np.nan for i in self._chosen], dtype=np.float64)
        values = np.array([float(self._initial[i]) for i in self._free])
        self.start: Array = np.clip((values - self._low + 0.5 * self._whole) / scale, 0.0, 1.0)

    def genome(self, point: Array, choices: NDArray[np.int64]) -> Genome:
        """The genome of coordinates and of numbers of choices."""
        if self._vector:
            vector = self._fixed.copy()
            vector[self._free] = self._low + self._span * point
            return self._spec.genome(vector)
        values: list[Value] = list(self._initial)
        for i, low, span, whole, at in zip(self._free, self._low, self._span, self._whole, point, strict=True):
            values[i] = float(low + min(math.floor(at * (span + 1)), span) if whole else low + span * at)
        for i, number in zip(self._chosen, choices, strict=True):
            gene = self._spec.genes[i]
            values[i] = gene.choices[number] if gene.choices else bool(number)
        return self._spec.genome(values)

    def point(self, genome: Genome) -> tuple[Array, NDArray[np.int64]]:
        """Coordinates and numbers of choices of a genome: what `genome` makes it from, but for rounding.

        A whole number is put in the middle of its interval.
        """
        if self._vector:
            values = np.array(numbers(genome)[self._free], dtype=np.float64)
        else:
            values = np.array([float(genome.values[i]) for i in self._free])
        scale = np.where(self._whole, self._span + 1, self._span)
        chosen = []
        for i in self._chosen:
            choices, value = self._spec.genes[i].choices, genome.values[i]
            chosen.append(choices.index(str(value)) if choices else int(bool(value)))
        return np.clip((values - self._low + 0.5 * self._whole) / scale, 0.0, 1.0), np.array(chosen, dtype=np.int64)

    def snapped(self, points: Array) -> Array:
        """Points ``(k, n)`` with their numbers on grids, and whole numbers in the middle of their intervals."""
        width = np.where(self.steps > 0, self.steps, 1.0)
        near = self.start + np.round((points - self.start) / width) * width
        near = near - width * (near > 1 + 1e-9) + width * (near < -1e-9)
        return np.where(self.steps > 0, near, points)

    def sample(self, rng: np.random.Generator, spread: Spread = None) -> tuple[Array, NDArray[np.int64]]:
        """Coordinates and numbers of choices drawn at random.

        Choices are drawn uniformly, and so are coordinates for ``None``; otherwise around the start, with `spread`
        as the standard deviation, clipped to the unit cube. For ``auto`` both are drawn around the start where their
        genes say how far, and uniformly where they do not.
        """
        if spread == "auto":
            return self._around(rng)
        if spread is None:
            point = rng.random(len(self.start))
        else:
            point = np.clip(self.start + spread * rng.standard_normal(len(self.start)), 0.0, 1.0)
        return point, rng.integers(0, np.array(self.counts, dtype=np.int64))

    def _around(self, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
        point, counts = rng.random(len(self.start)), np.array(self.counts, dtype=np.int64)
        choices = rng.integers(0, counts)
        if self.gentle:  # elsewhere the draws are those of ``None``
            near = np.clip(self.start + self.spreads * rng.standard_normal(len(point)), 0.0, 1.0)
            start = self.point(Genome(self._initial))[1]
            other = (start + rng.integers(1, np.maximum(counts, 2))) % np.maximum(counts, 2)
            kept = np.where(rng.random(len(counts)) < self.changes, other, start)
            point = np.where(np.isnan(self.spreads), point, near)
            choices = np.where(np.isnan(self.changes), choices, kept)
        return point, choices

    @property
    def gentle(self) -> bool:
        """Whether some gene says how far from the start it is at first."""
        return not (np.isnan(self.spreads).all() and np.isnan(self.changes).all())
