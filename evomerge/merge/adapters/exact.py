"""Results that are adapters of their base by their recipe alone: found from the sources' factors, without a weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evomerge.errors import RecipeError
from evomerge.merge.adapters.factors import added, factors_of_terms, made_factors, replaced
from evomerge.merge.adapters.places import AdapterBase, Kind, Places
from evomerge.merge.execution.engine import SliceMerge
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.low_rank import Bound, Factors, compressed
from evomerge.merge.mixes.mix import Mix
from evomerge.merge.planning.slice_plan import Part, Plan, SlicePlan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool, require_own_rows, unadapted

ADAPTER_METHODS = "weighted sums of adapters (task_arithmetic, linear), lora_lego and lora_factors"
"""What gives adapters, for messages."""


class _NeedsWeights(Exception):
    """A method asked for the sources' weights."""


class _NoStatistics:
    """`Statistics` for a method that is to be known by its parameters alone."""

    def __getattr__(self, name: str) -> Any:
        raise _NeedsWeights(name)


def common_base(pool: Pool) -> AdapterBase:
    """The one model that all of a pool are, or are adapters of.

    Raises:
        RecipeError: one is another model; it is named.
    """
    require_own_rows(pool, "an adapter", RecipeError)
    info = pool.info
    name = info.base if info.base is not None else info.config_from
    plain = unadapted(pool.checkpoints[name])
    for other, checkpoint in pool.checkpoints.items():
        if unadapted(checkpoint).folder != plain.folder:
            raise RecipeError(
                f"model {other!r} is a model of its own ({unadapted(checkpoint).folder})",
                f"adapters of one base, which is {plain.folder}",
                "give it as BASE+ADAPTER: `evomerge merge ... --format lora` makes an adapter of a difference",
            )
    return AdapterBase(name, replace(dict(info.refs)[name], adapter=None), plain, pool.stored[name])


class ExactAdapters:
    """Finds the adapters that plans are, of a pool whose models are adapters of one base.

    Args:
        pool: the source models.

    Raises:
        RecipeError: the pool has a model of its own.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.base, self.places = pool, common_base(pool), Places(pool)
        self._notes = Notes(0)

    def refusal(self, plan: Plan) -> str:
        """Why a plan is no adapter; empty where it is one."""
        try:
            self.of(plan)
        except RecipeError as error:
            return error.given
        return ""

    def of(self, plan: Plan) -> dict[str, tuple[Factors, Kind]]:
        """What a plan's result adds to the base: for every module that differs its factors.

        Returns:
            By module, as transformers names it: float32 factors ``b`` (rows, rank) and ``a`` (rank, columns) of what is
            added to its weight, scales included; and what kind of weight it is. Empty for the base itself.

        Raises:
            RecipeError: the result is no adapter by its recipe alone; names the tensor and why.
        """
        found: dict[str, tuple[Factors, Kind]] = {}
        layers = {entry.slice.layer for entry in plan.slices if entry.slice.layer is not None}
        if len(layers) != self.pool.info.layers:
            raise RecipeError(f"it has {len(layers)} layers, its base has {self.pool.info.layers}", ADAPTER_METHODS)
        for entry in plan.slices:
            for part in entry.parts:
                mix = mix_of(part)
                for index in part.tensors:
                    if not self.pool.is_merged(entry.like[index]):
                        continue
                    own = self._factors(entry, part, mix, index)
                    if own is None:
                        continue
                    place = self.places.of(entry.tensors[index])
                    limit = min(own.b.shape[0], own.a.shape[1])
                    kept = own if own.rank <= limit else compressed(own, Bound(rank=limit))
                    found[place.module] = kept, place.kind
        return found

    def _factors(self, entry: SlicePlan, part: Part, mix: Mix | None, index: int) -> Factors | None:
        """Of one tensor; ``None`` where it is the base's."""
        name = entry.tensors[index]
        terms = added(mix, entry, part.sources, part.base, index, self.base, self.pool)
        if terms is not None and not terms:
            return None
        sources = (*part.sources, *([part.base] if part.base is not None else []))
        if any(source.made is not None for source in sources):
            raise self._no_adapter(entry, part, index, "it is made of an intermediate")
        if terms is None and self._untouched(entry, part, index):
            return None
        place = self.places.of(name)
        if not place.has_factors or replaced(sources, index, self.pool):
            raise self._no_adapter(entry, part, index, place.problem or "an adapter of the pool holds it whole")
        own = None
        if terms is not None:
            own = factors_of_terms(terms)
        elif part.method is not None and METHODS[part.method].derived is not None:
            sources_of = Sources(self.pool, "cpu", Placement(0, 0, 0), notes=self._notes)
            own = made_factors(SliceMerge(entry, self.pool, sources_of), part, index, self.base)
        if own is None:
            raise self._no_adapter(entry, part, index, "")
        return own if own.rank and bool((own.b != 0).any()) and bool((own.a != 0).any()) else None

    def _untouched(self, entry: SlicePlan, part: Part, index: int) -> bool:
        """Whether a method on differences finds none: no source's adapter changes the tensor, nor is it moved."""
        if part.base is None or index in entry.factor_of:
            return False
        own = self.base.stored[entry.tensors[index]]
        for source in (*part.sources, part.base):
            checkpoint = self.pool.checkpoints[source.model]
            stored = self.pool.stored[source.model][source.tensors[index]]
            changed = isinstance(checkpoint, FoldedCheckpoint) and stored in checkpoint.changed
            if changed or stored != own or source.layer != entry.slice.layer:
                return False
        return True

    @staticmethod
    def _no_adapter(entry: SlicePlan, part: Part, index: int, why: str) -> RecipeError:
        method = part.method or "passthrough"
        reason = why or (
            f"{method} gives no sum of the adapters' factors here"
            if method not in ("passthrough", "linear", "task_arithmetic")
            else "factors that do not add up to one, another layer, or a scale make it no sum of adapters on the base"
        )
        return RecipeError(f"tensor {entry.tensors[index]!r} is no adapter's: {reason}", ADAPTER_METHODS)


def mix_of(part: Part) -> Mix | None:
    """The mix that a part's method is by its parameters alone; ``None`` where it looks at weights, or is none."""
    method = METHODS[part.method or "passthrough"]
    values: dict[str, Any] = dict(part.values) if part.method is not None else {"scale": (1.0,)}
    if method.derived is not None:
        return method.derived.simple(values, len(part.sources))
    if method.mix is None:
        return None
    statistics: Any = _NoStatistics()
    try:
        return method.mix(values, statistics)
    except _NeedsWeights:
        return None
