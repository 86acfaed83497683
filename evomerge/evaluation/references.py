"""The models of the pool that a fitness compares with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evomerge.protocols import Fitness
from evomerge.recipes.pool_info import PoolInfo


def references(fitness: Fitness, pool: PoolInfo) -> Sequence[str]:
    """Their names, in the order in which the fitness wants to see them; none where it compares with none.

    Raises:
        FitnessError: one that the pool does not have.
    """
    named: Callable[[PoolInfo], Sequence[str]] | None = getattr(fitness, "references", None)
    return named(pool) if named is not None else ()
