"""Genomes: what strategies vary, and what describes them. Files of this package do not import this one."""

from __future__ import annotations

from evomerge.genomes.arrays import ArrayGenome, ArraySpec
from evomerge.genomes.encoding import GenomeLog, pack_genomes, unpack_genomes
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Kind, Value
from evomerge.genomes.lineages import LineageGenome, LineageSpec

__all__ = [
    "ArrayGenome",
    "ArraySpec",
    "Gene",
    "Genome",
    "GenomeLog",
    "GenomeSpec",
    "Kind",
    "LineageGenome",
    "LineageSpec",
    "Value",
    "pack_genomes",
    "unpack_genomes",
]
