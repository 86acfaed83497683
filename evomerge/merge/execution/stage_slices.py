"""Slices of intermediates, made in order: each once, after those that it takes, and kept until its last use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from evomerge.merge.planning.slice_plan import SlicePlan

Tensors = Mapping[str, torch.Tensor]
Merge = Callable[[SlicePlan, Callable[[SlicePlan], Tensors]], Tensors]
"""Merges an intermediate's slice, given what gives the tensors of those that it takes."""


def stages_of(plan: SlicePlan, known: Callable[[SlicePlan], bool] = lambda plan: False) -> list[SlicePlan]:
    """The slices of intermediates that a slice depends on, each once and after those that it takes itself.

    Without recursion, and in time that grows with their number: a lineage is deep, and as a tree exponentially large.

    Args:
        plan: of the slice.
        known: those that need not be made; nor what only they depend on.
    """
    found: dict[str, SlicePlan] = {}
    todo = [(inner, False) for inner in reversed(_inner(plan))]
    while todo:
        each, complete = todo.pop()
        if complete:
            found.setdefault(each.key, each)
        elif each.key not in found and not known(each):
            todo.append((each, True))
            todo += [(inner, False) for inner in reversed(_inner(each)) if inner.key not in found]
    return list(found.values())


class StageSlices:
    """Gives the tensors of the intermediates' slices that one slice takes.

    Args:
        plan: of the slice.
        merge: merges one of them.
        kept: the tensors of those that need not be merged, ``None`` for the others.
    """

    def __init__(
        self, plan: SlicePlan, merge: Merge, kept: Callable[[SlicePlan], Tensors | None] = lambda plan: None
    ) -> None:
        self._plan, self._merge, self._kept = plan, merge, kept
        self._made: dict[str, Tensors] | None = None

    def __call__(self, wanted: SlicePlan) -> Tensors:
        """The tensors of one of those that the slice takes, by name."""
        if self._made is None:
            self._made = self._make_all()
        return _named(wanted, self._made)

    def _make_all(self) -> dict[str, Tensors]:
        """Make all, and keep those that the slice takes itself."""
        made: dict[str, Tensors] = {}

        def known(each: SlicePlan) -> bool:
            found = made.get(each.key) or self._kept(each)
            if found is not None:
                made[each.key] = found
            return found is not None

        stages = stages_of(self._plan, known)
        uses = Counter(inner.key for each in (*stages, self._plan) for inner in _inner(each))
        for each in stages:
            made[each.key] = self._merge(each, lambda inner: _named(inner, made))
            for inner in _inner(each):
                uses[inner.key] -= 1
                if not uses[inner.key]:
                    del made[inner.key]
        return made


def _named(wanted: SlicePlan, made: Mapping[str, Tensors]) -> Tensors:
    """By number: slices of two layers may be one and the same, under the names of either."""
    return dict(zip(wanted.tensors, made[wanted.key].values(), strict=True))


def _inner(plan: SlicePlan) -> list[SlicePlan]:
    """The slices of intermediates that a slice takes itself, each once."""
    found: dict[str, SlicePlan] = {}
    for part in plan.parts:
        for source in (*part.sources, *([part.base] if part.base else [])):
            if source.made is not None:
                found.setdefault(source.made.key, source.made)
    return list(found.values())
