"""Whom a candidate must beat, item by item, to be scored on more items."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.candidate import Candidate
from evomerge.protocols import Strategy
from evomerge.search.incumbent import Incumbent
from evomerge.strategies.bases.capabilities import Competing

Opponent = Callable[[Candidate], int | None]


def opponent(strategy: Strategy, incumbent: Incumbent) -> Opponent:
    """By candidate the number of the one that it must beat: whom the strategy says, else the best so far."""
    if isinstance(strategy, Competing):
        return strategy.to_beat
    return lambda candidate: incumbent.number
