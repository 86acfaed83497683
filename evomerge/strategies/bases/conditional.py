"""Genes that do not act: a strategy learns nothing from what they happen to be.

On a path through layers the scale of a layer that is left out changes nothing. It was drawn at random and says nothing
of the score; learnt from as if it did, it takes the distribution along on a random walk, and has lost its place by the
time that the layer is taken. (arXiv 2605.12326 lets the scales of layers that are left out drop out of the
distribution; here the mean and the probabilities of a gene move by the candidates in which it acts, and by no other.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.genome import Genome

Active = Callable[[Genome], Collection[str]]
"""The names of the genes that a genome's recipe depends on."""


@runtime_checkable
class Conditional(Protocol):
    """A strategy that learns from genes that act only."""

    def know_active(self, active: Active) -> None:
        """Be told which genes act; comes before anything is asked or loaded."""


def acting(active: Active, genomes: Sequence[Genome], names: Sequence[str]) -> NDArray[np.bool_]:
    """Which genes act in which genome, shape ``(genomes, names)``."""
    found = np.ones((len(genomes), len(names)), dtype=np.bool_)
    for row, genome in zip(found, genomes, strict=True):
        names_there = active(genome)
        row[:] = [name in names_there for name in names]
    return found
