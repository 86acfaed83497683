"""How M2N2 makes genomes: of values and of lineages; raw weights are in `weight_variation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.arrays import ArraySpec
from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.genomes.lineages import LineageGenome, LineageSpec, from_nodes, to_nodes
from evomerge.strategies.crossover import Angle, Cut, Path, child_of

Rng = np.random.Generator
_PATHS, _ANGLES = ("slerp", "linear"), ("segment", "whole")
SIGMA = 0.1


@dataclass(frozen=True)
class Settings:
    """How children are made; ``None`` leaves a choice to the kind of genome.

    Attributes:
        crossover: children of two parents; without, of one, mutated.
        split: whether the parents' roles change at a random place.
        path, angle: as in `crossover.child_of`.
        mutation: standard deviation in units of a gene's range; of raw weights, absolute.
        spread: of the first genomes around the start, in the same units; uniform within bounds for ``None``.
        chromosomes: patterns of gene names (``*.attn/*``) by chromosome; genes of none of them are one more.
    """

    crossover: bool = True
    split: bool = True
    path: Path = "slerp"
    angle: Angle = "segment"
    mutation: float | None = None
    spread: float | None = None
    chromosomes: tuple[tuple[str, ...], ...] = ()

    def sigma(self, usual: float) -> float:
        """The standard deviation of mutation, `usual` where it is left open.

        Raises:
            ConfigError: neither crossover nor mutation.
        """
        sigma = usual if self.mutation is None else self.mutation
        if not self.crossover and sigma == 0:
            raise ConfigError(
                "strategy.crossover is false and mutation is 0", "one of the two", "set strategy.mutation"
            )
        return sigma


class Variation(Protocol):
    """Makes genomes for a spec.

    Attributes:
        starts: how many genomes begin a population by themselves: the seeds; ``None`` where any number can be drawn.
        fixed: how many of the first ones are not drawn: the seeds, or the spec's start.
    """

    starts: int | None
    fixed: int

    def start(self, number: int, rng: Rng) -> Genome:
        """The genome that begins a population, by number; from `fixed` on they are drawn."""

    def child(self, first: Genome, second: Genome | None, rng: Rng) -> Genome:
        """A child of a parent and its mate; of the parent alone where there is no mate."""

    def pack(self, genomes: Sequence[Genome]) -> Any:
        """Genomes as JSON values or arrays."""

    def unpack(self, packed: Any) -> list[Genome]:
        """The genomes of `pack`."""


def variation_of(spec: GenomeSpec, settings: Settings) -> Variation:
    """What makes genomes of this spec.

    Raises:
        ConfigError: settings that cannot be, or do not fit the kind of genome.
    """
    for name, value, known in (("path", settings.path, _PATHS), ("angle", settings.angle, _ANGLES)):
        if value not in known:
            raise ConfigError(f"strategy.{name} is {value!r}", nearest(value, known))
    for name, sigma in (("mutation", settings.mutation), ("spread", settings.spread)):
        if sigma is not None and not 0 <= sigma < np.inf:
            raise ConfigError(f"strategy.{name} is {sigma}", "0 or more, or null")
    if isinstance(spec, LineageSpec):
        return LineageVariation(spec, settings)
    if isinstance(spec, ArraySpec):
        from evomerge.strategies.weight_variation import WeightVariation  # imports this module, and compiles

        return WeightVariation(spec, settings)
    return VectorVariation(spec, settings)


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
        self.fixed = int(self._spread is None)
        self._ranges, self._order = layout_of(spec, settings.chromosomes)

    def start(self, number: int, rng: Rng) -> Genome:
        """The spec's start, and then genomes around it or uniform within bounds."""
        if self._spread is None:
            return self._spec.initial if number == 0 else self._spec.sample(rng)
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


class LineageVariation:
    """Children of merged models: mixes and splits are drawn, nothing is mutated.

    A parent without a mate takes one of the seeds, other than itself.

    Raises:
        ConfigError: settings that belong to numbers: no crossover, mutation, chromosomes by gene names.
    """

    def __init__(self, spec: LineageSpec, settings: Settings) -> None:
        given = {
            "crossover": not settings.crossover,
            "mutation": bool(settings.mutation),
            "spread": settings.spread is not None,
            "chromosomes": bool(settings.chromosomes),
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise ConfigError(
                f"strategy.{name} is {getattr(settings, name)!r} and the genomes are lineages",
                "merged models have children of two, which are not mutated",
                "set search_space.chromosomes" if name == "chromosomes" else f"leave strategy.{name} out",
            )
        self._spec, self._split = spec, settings.split
        self.starts: int | None = len(spec.seeds)
        self.fixed = len(spec.seeds)

    def start(self, number: int, rng: Rng) -> Genome:
        """The seeds in order; children of two of them after those."""
        if number < len(self._spec.seeds):
            return self._spec.seed(self._spec.seeds[number])
        first, second = rng.permutation(len(self._spec.seeds))[:2]
        seeds = self._spec.seeds
        return self._spec.random_child(self._spec.seed(seeds[first]), self._spec.seed(seeds[second]), rng, self._split)

    def child(self, first: Genome, second: Genome | None, rng: Rng) -> Genome:
        """A child with a mix and a split for every chromosome."""
        assert isinstance(first, LineageGenome), "genomes of a lineage"
        if second is None:
            others = [name for name in self._spec.seeds if self._spec.seed(name) != first]
            second = self._spec.seed(others[int(rng.integers(len(others)))])
        assert isinstance(second, LineageGenome), "genomes of a lineage"
        return self._spec.random_child(first, second, rng, self._split)

    def pack(self, genomes: Sequence[Genome]) -> Any:
        """The graph of all that they descend from, each once."""
        nodes, places = to_nodes([genome for genome in genomes if isinstance(genome, LineageGenome)])
        return {"nodes": [list(node) for node in nodes], "places": places}

    def unpack(self, packed: Mapping[str, Any]) -> list[Genome]:
        """The genomes of `pack`."""
        every = from_nodes(packed["nodes"])
        return [every[place] for place in packed["places"]]


def layout_of(
    spec: GenomeSpec, patterns: Sequence[Sequence[str]]
) -> tuple[list[tuple[int, int]], NDArray[np.int64] | None]:
    """Where each chromosome begins and ends, and the genes' numbers in that order; ``None`` where it is their own."""
    groups = chromosomes_of([gene.name for gene in spec], patterns) if patterns else []
    sizes = [len(group) for group in groups] or [len(spec)]
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    ranges = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return ranges, np.concatenate(groups) if len(groups) > 1 else None


def chromosomes_of(names: Sequence[str], patterns: Sequence[Sequence[str]]) -> list[NDArray[np.int64]]:
    """Numbers of the genes of every chromosome, in order; those that no pattern names are one more.

    Raises:
        ConfigError: a pattern that no gene has, or that only has genes of an earlier chromosome.
    """
    owner: dict[int, int] = {}
    for number, words in enumerate(patterns):
        for word in words:
            found = [i for i, name in enumerate(names) if fnmatchcase(name, word)]
            if not found:
                raise ConfigError(
                    f"strategy.chromosomes[{number}] has {word!r}", f"no gene is so called: {nearest(word, names)}"
                )
            for i in found:
                owner.setdefault(i, number)
    groups = [[i for i in range(len(names)) if owner.get(i) == number] for number in range(len(patterns))]
    for number, group in enumerate(groups):
        if not group:
            raise ConfigError(f"strategy.chromosomes[{number}] is left without genes", "genes of no earlier chromosome")
    rest = [i for i in range(len(names)) if i not in owner]
    return [np.array(group, dtype=np.int64) for group in (*groups, rest) if group]
