"""Genomes as rows of numbers that trees can split."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, Value

Rows = NDArray[np.float32]

_ORDER = re.compile(r"(.+/order)\.(\d+)")


class Features:
    """How genes become features.

    Numbers and whole numbers are themselves, truth values 0 or 1, and of a categorical gene every choice is a feature
    that is 0 or 1: trees would otherwise split choices by an order that they do not have. Genes of an order
    (``layers.3/order.0`` and so on of `search_spaces.permutation`) each pick one of what is left, so that the same
    number means something else whenever one before it differs: their features are the places of the candidates.

    Args:
        genes: of the search space, in order.

    Attributes:
        count: of features.

    Raises:
        ConfigError: genes that stand for whole genomes.

    >>> features = Features([Gene("a"), Gene("m", "categorical", choices=("x", "y"))])
    >>> features.rows([Genome((0.5, "y"))]).tolist()
    [[0.5, 0.0, 1.0]]
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        if any(gene.kind == "lineage" for gene in genes):
            raise ConfigError("genomes are merges of merges", "a landscape is of genes with names and values")
        self._genes = tuple(genes)
        self._orders = _orders(genes)
        inside = {number for order in self._orders for number in order}
        self._plain = [(i, gene) for i, gene in enumerate(genes) if gene.kind != "categorical" and i not in inside]
        self._chosen = [(i, gene) for i, gene in enumerate(genes) if gene.kind == "categorical"]
        choices = sum(len(gene.choices) for _, gene in self._chosen)
        self.count = len(self._plain) + choices + sum(len(order) + 1 for order in self._orders)

    def rows(self, genomes: Sequence[Genome]) -> Rows:
        """Features of genomes of these genes, float32 of shape ``(genomes, count)``.

        Raises:
            ConfigError: a genome of another number of genes, or with a value that its gene does not take.
        """
        return np.array([self._row(genome) for genome in genomes], dtype=np.float32).reshape(len(genomes), self.count)

    def _row(self, genome: Genome) -> list[float]:
        values = genome.values
        if len(values) != len(self._genes):
            raise ConfigError(
                f"a genome of {len(values)} values was given",
                f"the landscape has {len(self._genes)} genes",
                "search all of them: bounds that fix genes make others of its genomes",
            )
        row = [_number(gene, values[i]) for i, gene in self._plain]
        for i, gene in self._chosen:
            gene.check(values[i])
            row += [float(choice == values[i]) for choice in gene.choices]
        for order in self._orders:
            left = list(range(len(order) + 1))
            picked = [left.pop(int(_number(self._genes[i], values[i]))) for i in order] + left
            row += [float(place) for place in np.argsort(picked)]
        return row


def _number(gene: Gene, value: Value) -> float:
    gene.check(value)
    return float(value)


def _orders(genes: Sequence[Gene]) -> list[list[int]]:
    """Numbers of the genes of every order, in place: the first of n picks from n + 1 candidates."""
    found: dict[str, list[int]] = {}
    for number, gene in enumerate(genes):
        match = _ORDER.fullmatch(gene.name)
        if match and gene.kind == "integer" and int(match[2]) == len(found.get(match[1], ())):
            found.setdefault(match[1], []).append(number)
    # What bounds have narrowed, or something else that is called so, is numbers.
    return [
        own
        for own in found.values()
        if all((genes[i].low, genes[i].high) == (0, len(own) - place) for place, i in enumerate(own))
    ]
