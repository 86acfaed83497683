"""What a strategy is told of its search space and of earlier runs, where it can make use of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from evomerge.genomes.genome import Genome
from evomerge.protocols import SearchSpace, Strategy
from evomerge.strategies.bases.conditional import Conditional


@runtime_checkable
class Beginning(Protocol):
    """A strategy that begins with what is good in earlier evaluations."""

    def begin_from(self, genomes: Sequence[Genome]) -> None:
        """Begin with genomes that were evaluated earlier, the best first; nothing was asked before."""


def informed(strategy: Strategy, space: SearchSpace) -> Strategy:
    """The strategy, told which genes act, where the space says so and the strategy asks."""
    active = getattr(space, "active", None)
    if active is not None and isinstance(strategy, Conditional):
        strategy.know_active(active)
    return strategy


def begin(strategy: Strategy, genomes: Sequence[Genome]) -> None:
    """Let a strategy begin with these genomes, if it can."""
    if genomes and isinstance(strategy, Beginning):
        strategy.begin_from(genomes)
