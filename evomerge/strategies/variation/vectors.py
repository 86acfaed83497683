"""Children of vector genomes: crossover and mutation, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.strategies.variation.base import SIGMA, Rng, Settings, layout_of
from evomerge.strategies.variation.coordinates import Coordinates
from evomerge.strategies.variation.crossover import Cut, child_of


class VectorVariation:
    """Children of genomes of values.

    Numbers are mixed, and rounded where the gene takes whole numbers or has a grid; words and truth values are those
    of the parent that is nearer. The split lies between two genes of a chromosome. Mutation adds noise to numbers and
    draws words and truth values anew with the probability of its standard deviation.

    Args:
        spec: the genes.
        settings: how.

    Raises:
        ConfigError: a pattern of `Settings.chromosomes` that no gene has; neither crossover nor mutation.
    """

    def __init__(self, spec: GenomeSpec, settings: Settings) -> None:
        self._spec, self._settings = spec, settings
        self.starts: int | None = None
        low, high = spec.bounds
        self._unit = high - low
        self._choices = [i for i, gene in enumerate(spec) if gene.kind in ("categorical", "boolean")]
        self._sigma = settings.sigma(SIGMA)
        self._spread = settings.spread
        self.fixed = int(self._spread is None or self._spread == "auto")
        self._ranges, self._order = layout_of(spec, settings.chromosomes)

    def start(self, number: int, rng: Rng) -> Genome:
        """The spec's start, and then genomes around it or uniform within bounds."""
        if self._spread is None:
            return self._spec.initial if number == 0 else self._spec.sample(rng)
        if self._spread == "auto":
            coordinates = Coordinates(self._spec)
            return self._spec.initial if number == 0 else coordinates.genome(*coordinates.sample(rng, "auto"))
        start = self._spec.initial
        return self._mutated(self._numbers(start), list(start.values), self._spread, rng)

    def child(self, first: Genome, second: Genome | None, rng: Rng) -> Genome:
        """The paper's child: mix and split of every chromosome uniform; then mutation."""
        a = self._numbers(first)
        values = list(first.values)
        if self._settings.crossover and second is not None:
            b = self._numbers(second)
            if self._order is not None:
                a, b = a[self._order], b[self._order]
            cuts = [self._cut(begin, end, rng) for begin, end in self._ranges]
            mixed = child_of(a, b, cuts, self._settings.path, self._settings.angle)
            if self._order is not None:
                back = np.empty_like(mixed)
                back[self._order] = mixed
                mixed = back
            for i in self._choices:
                if self._share(i, cuts) > 0.5:
                    values[i] = second.values[i]
        else:
            mixed = a.copy()
        sigma = self._sigma
        if second is None and sigma == 0:
            sigma = SIGMA  # alone, without mutation, it would be a copy
        return self._mutated(mixed, values, sigma, rng)

    def pack(self, genomes: Sequence[Genome]) -> Any:
        """Values as lists."""
        return [list(genome.values) for genome in genomes]

    def unpack(self, packed: Any) -> list[Genome]:
        """The genomes of `pack`."""
        return [self._spec.genome(row) for row in packed]

    def _cut(self, begin: int, end: int, rng: Rng) -> Cut:
        mix = float(rng.random())
        return Cut(begin, end, int(rng.integers(begin, end)) if self._settings.split else end, mix)

    def _share(self, gene: int, cuts: Sequence[Cut]) -> float:
        """How far a gene is from the first parent to the second."""
        place = gene if self._order is None else int(np.flatnonzero(self._order == gene)[0])
        cut = next(cut for cut in cuts if cut.begin <= place < cut.end)
        return cut.mix if place < cut.at else 1.0 - cut.mix

    def _numbers(self, genome: Genome) -> NDArray[Any]:
        """The numbers of a genome, zero where a gene takes words or truth values."""
        if not self._choices:
            return np.array(genome.values, dtype=np.float64)
        values = list(genome.values)
        for i in self._choices:
            values[i] = 0.0
        return np.array(values, dtype=np.float64)

    def _mutated(self, array: NDArray[Any], values: list[Value], sigma: float, rng: Rng) -> Genome:
        """The genome of numbers and choices, mutated."""
        if sigma:
            array = array + rng.standard_normal(len(array)) * (sigma * self._unit)
        if not self._choices:
            return self._spec.genome(array)
        mixed: list[Value] = array.tolist()
        for i in self._choices:
            gene = self._spec.genes[i]
            mixed[i] = values[i]
            if sigma and rng.random() < sigma:
                every: tuple[Value, ...] = gene.choices or (False, True)
                mixed[i] = every[int(rng.integers(len(every)))]
        return self._spec.genome(mixed)
