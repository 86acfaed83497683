"""Weighted sums of a pool's adapters as what all of them share, and weights: nothing is joined for a candidate."""

from __future__ import annotations

from typing import NamedTuple

import torch

from evomerge.merge.adapters.at_once import Term, Terms
from evomerge.merge.adapters.exact import ExactAdapters, mix_of
from evomerge.merge.adapters.factors import combination
from evomerge.merge.adapters.places import Kind
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.planning.slice_plan import Plan, SlicePlan
from evomerge.models.checkpoints.folding import FoldedCheckpoint


class _Shared(NamedTuple):
    """The factors of all adapters of a tensor, side by side.

    Attributes:
        module, kind: of the weight.
        factors: of all of them.
        ranks: of the adapters in their order, by model; without those that leave the tensor alone.
    """

    module: str
    kind: Kind
    factors: Factors
    ranks: tuple[tuple[str, int], ...]


class WeightedAdapters:
    """Finds the weights that plans give adapters.

    Args:
        adapters: of the pool.
    """

    def __init__(self, adapters: ExactAdapters) -> None:
        self._pool, self._base, self._places = adapters.pool, adapters.base, adapters.places
        self._known: dict[str, _Shared | None] = {}

    def of(self, plan: Plan) -> Terms | None:
        """What a plan adds to the base; ``None`` where it is no weighted sum of adapters that have factors."""
        layers = {entry.slice.layer for entry in plan.slices if entry.slice.layer is not None}
        if len(layers) != self._pool.info.layers:
            return None
        found: dict[str, Term] = {}
        for entry in plan.slices:
            if entry.factors or not self._add(entry, found):
                return None
        return found

    def _add(self, entry: SlicePlan, found: dict[str, Term]) -> bool:
        """Add the terms of a slice; whether it is such a sum."""
        for part in entry.parts:
            sources = (*part.sources, *([part.base] if part.base is not None else []))
            if any(own.made is not None or own.layer != entry.slice.layer for own in sources):
                return False
            terms = combination(mix_of(part), part.sources, part.base)
            if terms is None:
                return False
            weights: dict[str, float] = {}
            for weight, source in terms:
                weights[source.model] = weights.get(source.model, 0.0) + weight
            scales: dict[tuple[tuple[str, int], ...], torch.Tensor | None] = {}
            for index in part.tensors:
                if not self._pool.is_merged(entry.like[index]):
                    continue
                shared = self._shared(entry.tensors[index])
                if shared is None:
                    return False
                ranks = shared.ranks
                if ranks not in scales:
                    each = [weights.get(model, 0.0) for model, rank in ranks for _ in range(rank)]
                    scales[ranks] = torch.tensor(each, dtype=torch.float32) if any(each) else None
                own = scales[ranks]
                if own is not None:
                    found[shared.module] = Term(shared.factors, shared.kind, own)
        return True

    def _shared(self, name: str) -> _Shared | None:
        """Of one tensor; ``None`` where some adapter is more there than a product."""
        if name not in self._known:
            self._known[name] = self._join(name)
        return self._known[name]

    def _join(self, name: str) -> _Shared | None:
        own, place = self._base.stored[name], self._places.of(name)
        parts: list[Factors] = []
        ranks: list[tuple[str, int]] = []
        for model, checkpoint in self._pool.checkpoints.items():
            stored = self._pool.stored[model][name]
            if stored != own:
                return None
            if not isinstance(checkpoint, FoldedCheckpoint) or stored not in checkpoint.changed:
                continue
            factors = checkpoint.factors(stored)
            if factors is None or not place.has_factors:
                return None
            parts.append(Factors(*factors))
            ranks.append((model, parts[-1].rank))
        if not parts:
            return _Shared(place.module, place.kind, Factors(torch.zeros(0, 0), torch.zeros(0, 0)), ())
        joined = Factors(torch.cat([part.b for part in parts], 1), torch.cat([part.a for part in parts], 0))
        return _Shared(place.module, place.kind, joined, tuple(ranks))
