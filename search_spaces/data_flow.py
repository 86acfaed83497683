"""The data flow space: which layers of which models the hidden states pass through, and how they are scaled.

EvoLLM (arXiv 2403.13187, section 3.2). The layers of all models in a row, all of it repeated r times, are slots; an
indicator for every slot says whether the path takes it. The row has one model after another, as in the paper, or
goes through all of them layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from search_spaces.gentle import gentle_scales, gentle_takes
from search_spaces.layer_scaling import LayerScaling
from search_spaces.path_pool import ALONE, KEY, Alone, PathPool
from search_spaces.paths import Limits, Step, check_counts, check_head, path_slices, starting_path

ORDERS = ("layer", "model")


@dataclass(frozen=True)
class Unit:
    """A run of layers of one model that a path takes as a whole."""

    model: str
    first: int
    count: int

    @property
    def layers(self) -> list[tuple[str, int]]:
        """Pairs of model and layer."""
        return [(self.model, layer) for layer in range(self.first, self.first + self.count)]

    def __str__(self) -> str:
        last = self.first + self.count - 1
        return f"{self.model}.{self.first}" + (f"-{last}" if last > self.first else "")


class DataFlowSpace:
    """Paths through the layers of a pool; implements `protocols.SearchSpace`.

    Every slot has an indicator gene, called ``math.3``, and ``math.3@2`` for its second repeat. The slots of the
    input model's first layers (first repeat) and last layers (last repeat) have none: they are start and end of
    every path. The genes start at the input model itself, shortened or lengthened where limits demand it: its
    layers of the first repeat are the likely ones.

    Scale genes are called ``lang.4/scale`` (into this slot) or ``math.3>lang.4/scale`` (from one layer to another).
    Those of slots and input_scales that a path does not use are silent: the recipe does not depend on them.

    Args:
        pool: what there is.
        methods: declarations of merge methods; a path merges nothing.
        winner: of the phase before: it joins the models as the first, called ``merged``; ``None`` where there will be
            one that is not known yet.
        models: whose layers there are slots for, in order; the pool's sources for ``None``.
        input_model: gives the embeddings, the final norm, and the first and last layers; the first of `models` for
            ``None``.
        head: the model whose head it is; `input_model` for ``None``.
        order: how the layers are laid out. ``layer``: the first of every model, then the second of every model and so
            on; ``model``: all of the first model, then all of the second and so on, as in the paper.
        repeats: how often they are laid out one after another (the paper's r).
        block: layers in a unit that is taken or left as a whole; the last of a model may be shorter.
        fixed: how many first and last layers of the input model every path has.
        scales: ``slot``, one for every slot; ``hop``, the paper's matrix W over pairs of units; ``none``.
        scale_range: ``{low, high, initial, resolution}`` of every scale, any of them.
        negative_scales: lets scales go as far below zero as above.
        min_layers, max_layers: of a path.
        max_uses: how often a path may come through the same layer of the same model.
        max_parameters: of the result.
        relaxed: indicators are numbers from -1 to 1 that take a slot when above 0, as in the paper, for strategies
            that know numbers only.
        relaxed_start: where these numbers start, above 0 for the input model's slots, below it for the others.
        gentle_start: the first candidate is the input model as it is, and genes say how far from it the others are at
            first (`Gene.spread`): all indicators together change one or two places, all scales do what one alone would.

    Raises:
        ConfigError: anything of the above that cannot be; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        winner: Recipe | Alone | None = ALONE,
        models: list[str] | None = None,
        input_model: str | None = None,
        head: str | None = None,
        order: str = "layer",
        repeats: int = 1,
        block: int = 1,
        fixed: int = 1,
        scales: str = "slot",
        scale_range: dict[str, Any] | None = None,
        negative_scales: bool = False,
        min_layers: int | None = None,
        max_layers: int | None = None,
        max_uses: int | None = None,
        max_parameters: float | None = None,
        relaxed: bool = False,
        relaxed_start: float = 0.5,
        gentle_start: bool = False,
    ) -> None:
        self._pool = PathPool.of(pool, models, winner)
        self._input = self._pool.model(input_model, "input_model")
        if self._input not in self._pool.models:
            allowed = f"one of {KEY}.models: {', '.join(self._pool.models)}"
            raise ConfigError(f"{KEY}.input_model is {self._input!r}", allowed)
        self._head = check_head(self._pool, head, self._input)
        check_counts(repeats, block, fixed, self._pool.depth(self._input), self._input)
        self._limits = Limits.of(self._pool, min_layers, max_layers, max_uses, max_parameters)
        if order not in ORDERS:
            raise ConfigError(f"{KEY}.order is {order!r}", nearest(str(order), ORDERS))
        if not 0 < relaxed_start <= 1:
            raise ConfigError(f"{KEY}.relaxed_start is {relaxed_start}", "above 0 and at most 1")

        units = [u for model in self._pool.models for u in units_of(model, self._pool.depth(model), block, fixed)]
        if order == "layer":
            units.sort(key=lambda unit: unit.first)  # stable: models keep their order
        own = [number for number, unit in enumerate(units) if unit.model == self._input]
        slots, names = _slots(units, own, repeats, fixed, max_uses)
        self._units = [units[unit] for unit in slots]
        self._free = range(1, len(slots) - 1) if fixed else range(len(slots))
        likely = self._likely(own, slots)
        genes = [
            Gene(names[slot], "continuous", -1.0, 1.0, relaxed_start if slot in likely else -relaxed_start)
            if relaxed
            else Gene(names[slot], "boolean", initial=slot in likely)
            for slot in self._free
        ]
        self._scaling = LayerScaling(
            scales,
            slots,
            names,
            [str(unit) for unit in units],
            settings=scale_range,
            negative=negative_scales,
            pool=self._pool,
        )
        self._relaxed, self.starts_as_it_is = relaxed, gentle_start
        scaling: Sequence[Gene] = self._scaling.genes
        if gentle_start:
            genes, scaling = gentle_takes(genes), gentle_scales(scaling)
        self._spec = GenomeSpec((*genes, *scaling))

    @property
    def spec(self) -> GenomeSpec:
        """The genes: indicators in the order of the slots, then scales."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe; depends on nothing but the genome and the construction.

        Raises:
            ConfigError: the genome is not one of this space (length, bounds, types).
            InfeasibleError: the path is empty or beyond the limits, or a scale cannot be.
        """
        self._spec.check(genome)
        indicators, scales = genome.values[: len(self._free)], genome.values[len(self._free) :]
        taken = [slot for slot, value in zip(self._free, indicators, strict=True) if self._takes(value)]
        slots = self._with_ends(taken)
        self._limits.check(self._layers(slots), self._pool)
        steps = self._steps(slots, scales)
        return self._pool.recipe(path_slices(steps, self._pool, self._input, self._head))

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the genes that the recipe depends on: all indicators, and the scales that the path uses."""
        taken = [slot for slot, value in zip(self._free, genome.values, strict=False) if self._takes(value)]
        takes = [gene.name for gene in self._spec.genes[: len(self._free)]]
        return frozenset((*takes, *self._scaling.acting(self._with_ends(taken))))

    def _takes(self, value: Value) -> bool:
        return float(value) > 0 if self._relaxed else bool(value)

    def _with_ends(self, taken: Sequence[int]) -> list[int]:
        ends = len(self._free) < len(self._units)
        return [0, *taken, len(self._units) - 1] if ends else list(taken)

    def _layers(self, slots: Sequence[int]) -> list[tuple[str, int]]:
        return [layer for slot in slots for layer in self._units[slot].layers]

    def _steps(self, slots: Sequence[int], scales: Sequence[Value]) -> list[Step]:
        steps: list[Step] = []
        before: int | None = None
        for slot in slots:
            input_scale = 1.0 if before is None else self._scaling.scale(before, slot, scales)
            for place, (model, layer) in enumerate(self._units[slot].layers):
                steps.append(Step(model, layer, 1.0 if place else input_scale))
            before = slot
        return steps

    def _likely(self, own: Sequence[int], slots: Sequence[int]) -> set[int]:
        """The slots of the path that a search starts from: the input model, made to fit the limits."""
        first = [slots.index(unit) for unit in own]
        ends = len(self._free) < len(slots)
        body = [slot for slot in (first[1:-1] if ends else first) if slot in self._free]

        def check(taken: Sequence[int]) -> None:
            self._limits.check(self._layers(self._with_ends(taken)), self._pool)

        return starting_path(body, self._free, check)


def _slots(
    units: Sequence[Unit], own: Sequence[int], repeats: int, fixed: int, max_uses: int | None
) -> tuple[list[int], list[str]]:
    """The unit in every slot, by number, and the slots' names; the input model's ends at the ends where fixed.

    Args:
        units: of all models in order.
        own: numbers of those of the input model.
        repeats: how often all are laid out.
        fixed: 0 leaves every slot in its place.
        max_uses: 1 leaves out what the ends use already.
    """
    laid = [(repeat, unit) for repeat in range(repeats) for unit in range(len(units))]
    if fixed:
        start, end = (0, own[0]), (repeats - 1, own[-1])
        used = {own[0], own[-1]} if max_uses == 1 else set()
        laid = [start, *(slot for slot in laid if slot not in (start, end) and slot[1] not in used), end]
    names = [f"{units[unit]}" + (f"@{repeat + 1}" if repeat else "") for repeat, unit in laid]
    return [unit for _, unit in laid], names


def units_of(model: str, depth: int, block: int, fixed: int) -> list[Unit]:
    """A model's layers in runs of `block`; its first and its last `fixed` layers are units of their own."""
    ends = fixed if 2 * fixed <= depth else 0
    starts = [*([0] if ends else []), *range(ends, depth - ends, block), *([depth - ends] if ends else [])]
    return [Unit(model, a, b - a) for a, b in zip(starts, [*starts[1:], depth], strict=True)]
