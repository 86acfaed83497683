"""What a strategy is told of its search space and of earlier runs, where it can make use of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from evomerge.genomes.genome import Genome
from evomerge.protocols import SearchSpace, Strategy
from evomerge.search.racing.race import Race
from evomerge.strategies.bases.conditional import Conditional
from evomerge.strategies.bases.refined import Revised


@runtime_checkable
class Beginning(Protocol):
    """A strategy that begins with what is good in earlier evaluations."""

    def begin_from(self, genomes: Sequence[Genome]) -> None:
        """Begin with genomes that were evaluated earlier, the best first; nothing was asked before."""


@runtime_checkable
class Revising(Protocol):
    """A strategy that learns from estimates made anew with all that is known by now."""

    def know_estimates(self, revised: Revised) -> None:
        """Be told how; comes before anything is asked or loaded."""


def informed(strategy: Strategy, space: SearchSpace, race: Race | None) -> Strategy:
    """The strategy, told which genes act, where the space says so, and how to estimate anew, where it asks."""
    active = getattr(space, "active", None)
    if active is not None and isinstance(strategy, Conditional):
        strategy.know_active(active)
    if race is not None and isinstance(strategy, Revising):
        strategy.know_estimates(race.knowledge.revised)
    return strategy


def begin(strategy: Strategy, genomes: Sequence[Genome]) -> None:
    """Let a strategy begin with these genomes, if it can."""
    if genomes and isinstance(strategy, Beginning):
        strategy.begin_from(genomes)
