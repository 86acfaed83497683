"""Children of lineage genomes: merges of their parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import LineageGenome, LineageSpec, from_nodes, to_nodes
from evomerge.strategies.variation.base import Rng, Settings


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
