"""A phase of a search that is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from evomerge.genomes.genome import Genome
from evomerge.protocols import Proposal, SearchSpace, Strategy
from evomerge.search.in_flight import Flight
from evomerge.search.phases import Phase


@dataclass
class Course:
    """What the loop of a phase works with.

    Attributes:
        phase: which one.
        space, strategy: its own.
        limit: how many candidates are in flight at once; ``None`` for a generation at a time.
        first: genomes of the user's that were not asked yet.
        flight: candidates asked and not told.
        asked: how many candidates so far.
        named: ids of the user's, until they are told.
        bounded: whether what was asked was fewer than there were, because the budget ends.
    """

    phase: Phase
    space: SearchSpace
    strategy: Strategy
    limit: int | None
    first: deque[Genome]
    flight: Flight
    asked: int = 0
    named: set[int] = field(default_factory=set)
    bounded: bool = False

    @property
    def left(self) -> int:
        """How many candidates may still be asked."""
        return self.phase.evaluations - self.asked

    def ask(self) -> Sequence[Proposal]:
        """The strategy's proposals, as many as may be launched now."""
        if self.limit is None:
            proposals = self.strategy.ask(None)
            self.bounded = self.bounded or len(proposals) > self.left
            return proposals[: self.left]
        room = self.limit - len(self.flight)
        self.bounded = self.bounded or room > self.left
        return self.strategy.ask(min(room, self.left))[: self.left]
