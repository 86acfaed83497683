"""The phases of a search: one search space and one strategy after another, in one run and one ledger."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArraySpec
from evomerge.protocols import SearchSpace, Strategy
from evomerge.recipes.recipe import Recipe

Baselines = Mapping[str, Mapping[str, float]]
"""Objectives of the pool's own models by name."""


@dataclass(frozen=True)
class Phase:
    """One part of a search.

    Attributes:
        name: for the ledger and for messages.
        evaluations: its budget.
        space: makes its search space from the winner of the phases before (``None`` in the first).
        strategy: makes its strategy from the genes (`GenomeSpec`) and the objectives of the `Baselines`.
        takes_winner: whether the space is made from the winner, so that there must be one.
        preferences: weights of the objectives by name: the phase is searched once for each of them, with an equal part
            of its budget, from the member of the front that suits it best. Its strategy is made for one objective then,
            and takes the number of the preference as ``place``.
        place: of a phase that is searched for one preference, which of them it is.
    """

    name: str
    evaluations: int
    space: Callable[[Recipe | None], SearchSpace]
    strategy: Callable[..., Strategy]
    takes_winner: bool = False
    preferences: tuple[Mapping[str, float], ...] = ()
    place: int = 0

    @property
    def preference(self) -> Mapping[str, float] | None:
        """What it is searched for, of a phase of `each`."""
        return self.preferences[self.place] if self.preferences else None

    def each(self) -> list[Phase]:
        """The phase, or one for every preference."""
        if not self.preferences:
            return [self]
        share, more = divmod(self.evaluations, len(self.preferences))
        return [
            replace(
                self,
                evaluations=share + (place < more),
                strategy=functools.partial(self.strategy, place=place),
                place=place,
            )
            for place in range(len(self.preferences))
        ]

    def fields(self, space: SearchSpace) -> dict[str, Any]:
        """Fields of its event: its name, its budget, and the names of its genes; of raw weights how many."""
        spec = space.spec
        genes = len(spec) if isinstance(spec, ArraySpec) else [gene.name for gene in spec]
        found = {"phase": self.name, "evaluations": self.evaluations, "genes": genes}
        return found if self.preference is None else {**found, "preference": dict(self.preference)}

    @staticmethod
    def of(space: SearchSpace, strategy: Strategy, evaluations: int, name: str = "search") -> Phase:
        """A phase of parts that are there already."""
        return Phase(name, evaluations, lambda winner: space, lambda spec, baselines: strategy)


def split_budget(total: int, wanted: Mapping[str, int | float | None]) -> dict[str, int]:
    """The evaluations of every phase.

    Args:
        total: of all phases together.
        wanted: by phase: a whole number of evaluations, a share of the total between 0 and 1, or ``None`` for an
            equal part of what the others leave.

    Raises:
        ConfigError: the numbers do not add up to the total, or a phase gets nothing.
    """
    given: dict[str, int] = {}
    for name, value in wanted.items():
        key = f"phases.{name}.evaluations"
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"{key} is {value!r}", "a whole number, a share between 0 and 1, or null")
        if isinstance(value, float) and 0 < value < 1:
            given[name] = math.floor(value * total)
        elif value is not None:
            if value < 1 or value != int(value):
                raise ConfigError(f"{key} is {value!r}", "a whole number from 1, a share between 0 and 1, or null")
            given[name] = int(value)
    open_ones = [name for name in wanted if name not in given]
    left = total - sum(given.values())
    shares = [name for name, value in wanted.items() if isinstance(value, float) and 0 < value < 1]
    if not open_ones and shares and 0 < left <= len(shares):  # what rounding down left over
        given[shares[-1]] += left
        left = 0
    if (left != 0 and not open_ones) or left < len(open_ones):
        parts = " + ".join(str(given.get(name, "null")) for name in wanted)
        raise ConfigError(
            f"phases ask for {parts} evaluations, and search.evaluations is {total}",
            "they must add up, with at least one for each phase",
            "change search.evaluations, or leave out a phase's evaluations: it takes what the others leave",
        )
    for place, name in enumerate(open_ones):
        given[name] = left // len(open_ones) + (place < left % len(open_ones))
    return {name: given[name] for name in wanted}
