"""Genomes as a ledger keeps them: gene values, lineages by the candidates they descend from, arrays by their hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArrayGenome
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import LineageGenome, from_nodes, to_nodes


class GenomeLog:
    """Genomes as a ledger keeps them: gene values; parents of lineages by candidate.

    Every lineage genome that is written or read is known by its candidate from then on, and its children are written
    as their own values and those numbers. Where a parent is not known (an ancestor that was never a candidate), all
    that is missing is written with it.

    Of raw weights, hundreds of kilobytes as text, only the hash is written: the same search proposes them again, and
    the best are in the run's ``best`` folder.
    """

    def __init__(self) -> None:
        self._candidates: dict[str, int] = {}
        self._genomes: dict[int, LineageGenome] = {}

    def write(self, candidate: int, genome: Genome | None) -> Any:
        """The genome of a candidate as JSON values; ``None`` for none."""
        if isinstance(genome, ArrayGenome):
            return {"array": len(genome), "sha256": genome.digest}
        if not isinstance(genome, LineageGenome):
            return None if genome is None else genome.values
        known: dict[str, int] = {}
        new: list[LineageGenome] = []
        todo = [(genome, False)]
        while todo:
            each, complete = todo.pop()
            if each.digest in known:
                continue
            if not complete and each is not genome and each.digest in self._candidates:
                known[each.digest] = -1 - self._candidates[each.digest]
            elif complete or not each.parents:
                known[each.digest] = len(new)
                new.append(each)
            else:
                todo.append((each, True))
                todo += [(parent, False) for parent in reversed(each.parents)]
        self._know(candidate, genome)
        # Places in this list count from 0; candidates are told apart by being negative: -1 is candidate 0.
        steps = [[list(each.values), [known[parent.digest] for parent in each.parents]] for each in new]
        return {"lineage": steps}

    def read(self, candidate: int, written: Any) -> Genome | None:
        """The genome that `write` wrote for a candidate, after those before it were read; ``None`` for raw weights.

        Raises:
            ConfigError: it is malformed, or names a candidate that was not read.
        """
        if written is None or (isinstance(written, Mapping) and "array" in written):
            return None
        if not isinstance(written, Mapping):
            return _plain(candidate, written)
        found: list[LineageGenome] = []
        try:
            for values, parents in written["lineage"]:
                of = [self._genomes[-1 - place] if place < 0 else found[place] for place in parents]
                found.append(LineageGenome(tuple(values), of))
            genome = found[-1]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"the lineage of candidate {candidate} is malformed ({reason})", "as it was written"
            ) from None
        self._know(candidate, genome)
        return genome

    def _know(self, candidate: int, genome: LineageGenome) -> None:
        self._candidates.setdefault(genome.digest, candidate)
        self._genomes.setdefault(candidate, genome)


def _plain(candidate: int, written: Any) -> Genome:
    """The genome of values in a list: numbers, words and truths."""
    if not isinstance(written, list) or not all(isinstance(value, str | int | float) for value in written):
        raise ConfigError(f"the genome of candidate {candidate} is malformed", "a list of numbers and words")
    return Genome(tuple(written))


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
