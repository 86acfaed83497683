"""How M2N2 makes genomes: of values and of lineages; raw weights are in `weight_variation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.strategies.variation.coordinates import Spread
from evomerge.strategies.variation.crossover import Angle, Interpolation

Rng = np.random.Generator
SIGMA = 0.1


@dataclass(frozen=True)
class Settings:
    """How children are made; ``None`` leaves a choice to the kind of genome.

    Attributes:
        crossover: children of two parents; without, of one, mutated.
        split: whether the parents' roles change at a random place.
        path, angle: as in `crossover.child_of`.
        mutation: standard deviation in units of a gene's range; of raw weights, absolute.
        spread: of the first genomes around the start, in the same units; uniform within bounds for ``None``; for
            ``auto`` as near the start as genes say, and as ``None`` where none does.
        chromosomes: patterns of gene names (``*.attn/*``) by chromosome; genes of none of them are one more.
    """

    crossover: bool = True
    split: bool = True
    path: Interpolation = "slerp"
    angle: Angle = "segment"
    mutation: float | None = None
    spread: Spread = None
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
