"""The genes that one strategy of several searches, and what a genome from elsewhere is worth there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.strategies.bases.conditional import Active


class Territory:
    """Some genes of a spec, free, and the others at their start; all of them for ``None``.

    Args:
        spec: all genes.
        patterns: of the names of those that are free.
        key: where the patterns stand in the configuration.

    Attributes:
        spec: the genes that are free.
        names: their names.

    Raises:
        ConfigError: no pattern, one that no gene has, or genes without names of their own (raw weights, lineages).
    """

    def __init__(self, spec: GenomeSpec, patterns: Sequence[str] | None, key: str) -> None:
        self._all = spec
        self.spec = spec
        self._places = list(range(len(spec)))
        self._whole = patterns is None
        if patterns is not None:
            self.spec = self._some(patterns, key)
        self.names = frozenset() if self._whole else frozenset(gene.name for gene in self.spec)

    def _some(self, patterns: Sequence[str], key: str) -> GenomeSpec:
        if type(self._all) is not GenomeSpec:
            raise ConfigError(f"{key} is {list(patterns)}", "null: genes of this search space are not told apart")
        if not patterns:
            raise ConfigError(f"{key} is empty", "patterns of gene names, or null for all genes")
        names = [gene.name for gene in self._all]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"{key} has {pattern!r}, which no gene is called", nearest(pattern, names))
        self._places = [i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in patterns)]
        return GenomeSpec(tuple(self._all.genes[i] for i in self._places))

    def full(self, genome: Genome) -> Genome:
        """A genome of the free genes with the others at their start."""
        if self._whole:
            return genome
        values = list(self._all.initial.values)
        for place, value in zip(self._places, genome.values, strict=True):
            values[place] = value
        return Genome(tuple(values))

    def own(self, genome: Genome) -> Genome:
        """The free genes of a full genome."""
        return genome if self._whole else Genome(tuple(genome.values[place] for place in self._places))

    def translated(self, genome: Genome) -> Genome:
        """The full genome nearest to another here: its free genes, the others at their start."""
        return self.full(self.own(genome))

    def holds(self, genome: Genome) -> bool:
        """Whether a full genome can be found here: then it is the same model, and its score is right."""
        return self._whole or (len(genome) == len(self._all) and self.translated(genome) == genome)

    def shares(self, other: Territory) -> bool:
        """Whether some gene is free in both."""
        return self._whole or other._whole or not self.names.isdisjoint(other.names)

    def seen(self, candidate: Candidate) -> Candidate:
        """A candidate with its free genes alone, as the strategy that searches here knows it."""
        if self._whole or candidate.genome is None:
            return candidate
        return replace(candidate, genome=self.own(candidate.genome))

    def active(self, active: Active) -> Active:
        """Which genes act in a genome of the free ones."""
        if self._whole:
            return active

        def here(genome: Genome) -> Collection[str]:
            return active(self.full(genome))

        return here
