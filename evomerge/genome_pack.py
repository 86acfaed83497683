"""Genomes of every kind as JSON values and arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.array_genome import ArrayGenome
from evomerge.errors import ConfigError
from evomerge.genome import Genome
from evomerge.lineage_genome import LineageGenome, from_nodes, to_nodes


def pack_genomes(genomes: Sequence[Genome]) -> dict[str, Any]:
    """Genomes as JSON values and arrays; lineages share the ancestors that they have in common.

    Returns:
        `genomes`: an entry for each, ``[kind, ...]``: its values, its place among the `arrays`, or its place among
        the `nodes`.
    """
    nodes, places = to_nodes([genome for genome in genomes if isinstance(genome, LineageGenome)])
    place = iter(places)
    entries: list[list[Any]] = []
    arrays: list[Any] = []
    for genome in genomes:
        if isinstance(genome, LineageGenome):
            entries.append(["lineage", next(place)])
        elif isinstance(genome, ArrayGenome):
            entries.append(["array", len(arrays)])
            arrays.append(genome.array)
        else:
            values = [value.item() if isinstance(value, np.generic) else value for value in genome.values]
            entries.append(["values", values])
    return {"genomes": entries, "arrays": arrays, "nodes": [list(node) for node in nodes]}


def unpack_genomes(packed: Mapping[str, Any]) -> list[Genome]:
    """The genomes of `pack_genomes`.

    Raises:
        ConfigError: it is malformed.
    """
    lineage = from_nodes(packed["nodes"])
    found: list[Genome] = []
    try:
        for kind, content in packed["genomes"]:
            if kind == "lineage":
                found.append(lineage[content])
            elif kind == "array":
                found.append(ArrayGenome(np.array(packed["arrays"][content], dtype=np.float32)))
            else:
                found.append(Genome(tuple(content)))
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"saved genomes are malformed ({type(error).__name__}: {error})") from error
    return found
