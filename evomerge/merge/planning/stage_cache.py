"""Plans of intermediates, kept with their pool: the candidates of a lineage share most of them."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

P = TypeVar("P")

KEPT = 1024
"""Plans that are kept for a pool at most, those used last; more where one recipe has more intermediates."""


class StagePlans(Generic[P]):
    """The plans of one pool's intermediates by recipe; not used by two threads at a time.

    Attributes:
        copies: what planning knows of slices that are a model's as they are.
    """

    def __init__(self) -> None:
        self._plans: dict[Any, P] = {}
        self.copies: dict[Any, Any] = {}

    def get(self, key: Any) -> P | None:
        """The plan, which is then the one used last; ``None`` where there is none."""
        plan = self._plans.pop(key, None)
        if plan is not None:
            self._plans[key] = plan
        return plan

    def put(self, key: Any, plan: P, together: int = 0) -> None:
        """Keep a plan, instead of the one that was not used for longest.

        Args:
            key: the recipe's.
            plan: the recipe's.
            together: how many are used one after the other. All of these are kept: the next candidate of a long lineage
                asks for them in the same order, and would find none where the first had made room for the last.
        """
        self._plans[key] = plan
        if len(self._plans) > max(KEPT, together):
            del self._plans[next(iter(self._plans))]


_OF: dict[int, StagePlans[Any]] = {}


def stage_plans(pool: Any) -> StagePlans[Any]:
    """Those of a pool, which go when it goes."""
    found = _OF.get(id(pool))
    if found is None:
        found = _OF[id(pool)] = StagePlans()
        weakref.finalize(pool, _OF.pop, id(pool), None)
    return found
