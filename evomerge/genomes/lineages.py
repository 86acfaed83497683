"""Lineages: genomes that are merges of genomes, a graph that begins with the seeds of a search."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value

Node = tuple[list[Value], list[int]]
"""A genome of a list of genomes: its values, and the places of its parents in that list."""


class LineageGenome(Genome):
    """A seed, or a child of two genomes of the same kind.

    Equal to another of the same content, which is compared by its digest: a lineage shares ancestors, and as a tree it
    would be exponentially large.

    Attributes:
        values: of a seed its name; of a child the mix and the split of every chromosome, one after the other.
        parents: none, or two.
        digest: SHA-256 (hex) of values and parents.
        generation: 0 for a seed, else one more than the later parent's.
    """

    values: tuple[Value, ...]
    parents: tuple[LineageGenome, ...]
    digest: str
    generation: int

    def __init__(self, values: Sequence[Value], parents: Sequence[LineageGenome] = ()) -> None:
        own = tuple(value if isinstance(value, str) else float(value) + 0.0 for value in values)
        content = json.dumps([own, [parent.digest for parent in parents]])
        object.__setattr__(self, "values", own)
        object.__setattr__(self, "parents", tuple(parents))
        object.__setattr__(self, "digest", hashlib.sha256(content.encode()).hexdigest())
        object.__setattr__(self, "generation", 1 + max((parent.generation for parent in parents), default=-1))

    @property
    def lineage(self) -> list[LineageGenome]:
        """All genomes that it descends from, each once and after its parents; itself last."""
        return lineages([self])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LineageGenome):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"LineageGenome({self.digest[:8]}, generation {self.generation}, {self.values})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (to_nodes([self])[0],)  # a lineage may be deeper than pickle's stack


def lineages(genomes: Iterable[LineageGenome]) -> list[LineageGenome]:
    """The genomes and all that they descend from, each once and after its parents."""
    found: dict[str, LineageGenome] = {}
    todo = [(genome, False) for genome in reversed(list(genomes))]
    while todo:
        genome, complete = todo.pop()
        if complete:
            found.setdefault(genome.digest, genome)
        elif genome.digest not in found:
            todo.append((genome, True))
            todo += [(parent, False) for parent in reversed(genome.parents) if parent.digest not in found]
    return list(found.values())


def to_nodes(genomes: Sequence[LineageGenome]) -> tuple[list[Node], list[int]]:
    """Genomes as JSON values: a list of all that they descend from, shared, and their own places in it."""
    every = lineages(genomes)
    place = {genome.digest: i for i, genome in enumerate(every)}
    nodes = [(list(genome.values), [place[parent.digest] for parent in genome.parents]) for genome in every]
    return nodes, [place[genome.digest] for genome in genomes]


def from_nodes(nodes: Iterable[Sequence[Any]], given: Sequence[LineageGenome] = ()) -> list[LineageGenome]:
    """The genomes of nodes, in order; parents are counted from the first of `given`.

    Raises:
        ConfigError: a node that is none, or whose parents do not come before it.
    """
    found = list(given)
    for number, node in enumerate(nodes):
        try:
            values, parents = node
            if any(not 0 <= place < len(found) for place in parents):
                raise ValueError("its parents come later")
            found.append(LineageGenome(tuple(values), [found[place] for place in parents]))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"node {number} of a lineage is malformed ({error})", "[values, places of parents]"
            ) from None
    return found[len(given) :]


def _rebuilt(nodes: list[Node]) -> LineageGenome:
    return from_nodes(nodes)[-1]


@dataclass(frozen=True)
class Bounds:
    """Inclusive bounds of the mix w: how far a child is from its first parent to its second."""

    low: float = 0.0
    high: float = 1.0


class LineageSpec(GenomeSpec):
    """The genomes of a search space of lineages.

    To strategies that do not know of lineages it is one gene of the kind ``lineage``; `sample` draws children of two
    seeds.

    Args:
        seeds: names of the genomes that everything descends from; two or more.
        chromosomes: names of the parts of a model that have a mix and a split of their own.
        mix: bounds of the mix.

    Raises:
        ConfigError: less than two seeds, names twice, no chromosome, or bounds that are none.
    """

    seeds: tuple[str, ...]
    chromosomes: tuple[str, ...]
    mix: Bounds

    def __init__(
        self, seeds: Sequence[str], chromosomes: Sequence[str] = ("model",), mix: Bounds | None = None
    ) -> None:
        mix = mix or Bounds()
        if len(set(seeds)) < max(len(seeds), 2):
            raise ConfigError(f"a lineage was given the seeds {', '.join(seeds) or 'none'}", "two or more, each once")
        if not chromosomes or len(set(chromosomes)) < len(chromosomes):
            raise ConfigError(f"a lineage was given the chromosomes {', '.join(chromosomes)}", "one or more, each once")
        if not 0 <= mix.low <= mix.high <= 1:
            raise ConfigError(f"the mix goes from {mix.low} to {mix.high}", "0 <= low <= high <= 1")
        super().__init__((Gene("lineage", "lineage", choices=tuple(seeds)),))
        object.__setattr__(self, "seeds", tuple(seeds))
        object.__setattr__(self, "chromosomes", tuple(chromosomes))
        object.__setattr__(self, "mix", mix)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LineageSpec):
            return NotImplemented
        return (self.seeds, self.chromosomes, self.mix) == (other.seeds, other.chromosomes, other.mix)

    def __hash__(self) -> int:
        return hash((self.seeds, self.chromosomes, self.mix))

    def seed(self, name: str) -> LineageGenome:
        """The genome of a seed; `ConfigError` with the nearest names when there is none."""
        if name not in self.seeds:
            raise ConfigError(f"there is no seed {name!r}", nearest(name, self.seeds))
        return LineageGenome((name,))

    def child(self, first: LineageGenome, second: LineageGenome, values: Sequence[float]) -> LineageGenome:
        """A child of two genomes.

        Args:
            first, second: the parents; A and B of the paper.
            values: mix and split of every chromosome, one after the other. A split is the share of the chromosome's
                parameters that come before it.

        Raises:
            ConfigError: values that are not these, or out of bounds.
        """
        child = LineageGenome(values, (first, second))
        self._check_own(child)
        return child

    def random_child(
        self, first: LineageGenome, second: LineageGenome, rng: np.random.Generator, split: bool = True
    ) -> LineageGenome:
        """A child with mixes and splits drawn uniformly; without `split`, of whole chromosomes."""
        values: list[float] = []
        for _ in self.chromosomes:
            mix = float(rng.uniform(self.mix.low, self.mix.high))
            values += [mix, float(rng.random()) if split else 1.0]
        return self.child(first, second, values)

    def genome(self, values: Sequence[Value] | NDArray[np.float64]) -> Genome:
        """The genome of a seed from its name.

        Raises:
            ConfigError: anything else: a child is made of its parents, by `child`.
        """
        if len(values) == 1 and isinstance(values[0], str):
            return self.seed(values[0])
        raise ConfigError(f"the values {list(values)} alone are no genome of a lineage", "a child has parents as well")

    def check(self, genome: Genome) -> None:
        """Raise `ConfigError` when a genome, or one that it descends from, is not of this spec."""
        if not isinstance(genome, LineageGenome):
            raise ConfigError(f"a genome of {len(genome)} gene values was given", "a lineage")
        for each in genome.lineage:
            self._check_own(each)

    def check_step(self, genome: Genome) -> None:
        """Check one lineage genome; those that it descends from were checked when they were made."""
        if not isinstance(genome, LineageGenome):
            raise ConfigError(f"a genome of {len(genome)} gene values was given", "a lineage")
        self._check_own(genome)

    def _check_own(self, genome: LineageGenome) -> None:
        if not genome.parents:
            if len(genome) != 1:
                raise ConfigError(f"a seed of {len(genome)} gene values was given", "a seed is a name")
            self.seed(str(genome.values[0]))
            return
        wanted = 2 * len(self.chromosomes)
        if len(genome.parents) != 2 or len(genome) != wanted:
            raise ConfigError(
                f"a child of {len(genome.parents)} parents with {len(genome)} gene values was given",
                f"two parents, and a mix and a split for each of {', '.join(self.chromosomes)}",
            )
        for number, value in enumerate(genome.values):
            low, high = (0.0, 1.0) if number % 2 else (self.mix.low, self.mix.high)
            if isinstance(value, str) or not (math.isfinite(value) and low <= value <= high):
                name = f"{self.chromosomes[number // 2]}/{'split' if number % 2 else 'mix'}"
                raise ConfigError(f"gene {name!r} was given {value!r}", f"a number in [{low}, {high}]")

    def named(self, genome: Genome) -> dict[str, Value]:
        """The last step: the seed, or mix and split by chromosome."""
        if len(genome) == 1:
            return {"seed": genome.values[0]}
        names = [f"{chromosome}/{what}" for chromosome in self.chromosomes for what in ("mix", "split")]
        return dict(zip(names, genome.values, strict=True))

    def value(self, genome: Genome, name: str) -> Value:
        """One value of the last step, by the name that `named` gives it."""
        return self.named(genome)[name]

    @property
    def initial(self) -> LineageGenome:
        """The first seed."""
        return self.seed(self.seeds[0])

    def sample(self, rng: np.random.Generator) -> LineageGenome:
        """A child of two different seeds, mixes and splits drawn uniformly."""
        first, second = rng.permutation(len(self.seeds))[:2]
        return self.random_child(self.seed(self.seeds[first]), self.seed(self.seeds[second]), rng)
