"""The joint hybrid: a path whose every slot carries merge genes.

EvoLLM (arXiv 2403.13187, section 3.3) merges parameters first and then searches the data flow; that form is two
phases of one search, where `data_flow.DataFlowSpace` takes the first phase's winner. Here both are one genome.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId, SliceRecipe
from search_spaces.gentle import gentle_scales, gentle_takes
from search_spaces.layer_scaling import LayerScaling
from search_spaces.parameter import ParameterSpace
from search_spaces.path_pool import ALONE, KEY, PathPool
from search_spaces.paths import Limits, check_counts, factors, slice_scale, starting_path


class JointSpace:
    """A path through the pool's layers, each merged of all models; implements `protocols.SearchSpace`.

    The slots are the layers in order, repeated; the first of the first repeat and the last of the last are in every
    path. What is in a slot is that layer of the models, merged as genes of the slot say: the genes of
    `parameter.ParameterSpace` for a model as deep as there are slots (``slots.7/math/weight``), or, when `shared`, for
    the pool's own layers, so that a repeated layer is merged once (``layers.1/math/weight``). Indicators are called
    ``take.7``, and scales ``take.7/scale`` or ``layers.1>layers.2/scale``. Merge genes and scales of slots that are
    not taken are silent.

    Args:
        pool: what there is.
        methods: declarations by name.
        repeats, fixed, scales, scale_range, negative_scales: as for `data_flow.DataFlowSpace`, of one model.
        min_layers, max_layers, max_uses, max_parameters: likewise.
        gentle_start: likewise; the first candidate has every layer once, merged as the merge genes start. These have no
            spread of their own.
        shared: whether repeats of a layer share its merge genes.
        method, layer_group, components, interpolation, anchors, parameters: as for `ParameterSpace`.
        negative_weights, normalize, resolution, mask_seed: likewise.

    Raises:
        ConfigError: anything of the above that cannot be; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        repeats: int = 1,
        fixed: int = 1,
        shared: bool = False,
        scales: str = "slot",
        scale_range: dict[str, Any] | None = None,
        negative_scales: bool = False,
        min_layers: int | None = None,
        max_layers: int | None = None,
        max_uses: int | None = None,
        max_parameters: float | None = None,
        gentle_start: bool = False,
        method: str | list[str] = "task_arithmetic",
        layer_group: int | str = "layer",
        components: str | list[list[str]] = "all",
        interpolation: Literal["none", "linear"] = "none",
        anchors: int = 3,
        parameters: dict[str, Any] | None = None,
        negative_weights: bool = False,
        normalize: bool | None = None,
        resolution: float | None = None,
        mask_seed: int = 0,
    ) -> None:
        if pool.uneven:
            do = "take search_space=data_flow, which merges nothing"
            raise ConfigError(f"{KEY} merges layers and {pool.uneven}", "models of one depth", do)
        self._pool = PathPool.of(pool, None, ALONE)
        depth = pool.layers
        check_counts(repeats, 1, fixed, depth, pool.config_from)
        self._limits = Limits.of(self._pool, min_layers, max_layers, max_uses, max_parameters)
        self._slots = [layer for _ in range(repeats) for layer in range(depth)]
        self._shared, self._seed = shared, mask_seed
        self._merges = ParameterSpace(
            pool if shared else _of_slots(pool, self._slots),
            methods,
            method=method,
            layer_group=layer_group,
            components=components,
            interpolation=interpolation,
            anchors=anchors,
            parameters=parameters,
            negative_weights=negative_weights,
            normalize=normalize,
            resolution=resolution,
            mask_seed=mask_seed,
        )
        count = len(self._slots)
        names = [f"take.{slot}" for slot in range(count)]
        self._free = range(fixed, count - fixed)
        start = self._start()
        takes = [Gene(names[slot], "boolean", initial=slot in start) for slot in self._free]
        self._scaling = LayerScaling(
            scales,
            self._slots,
            names,
            [f"layers.{layer}" for layer in range(depth)],
            settings=scale_range,
            negative=negative_scales,
            pool=self._pool,
        )
        renamed = repeats > 1 and not shared  # these are no layers of the pool
        merges = [replace(gene, name=_of_slots_name(gene.name)) if renamed else gene for gene in self._merges.spec]
        left_out = self._merges.left_out
        self.left_out = tuple(_of_slots_name(name) for name in left_out) if renamed else left_out
        scaling: Sequence[Gene] = self._scaling.genes
        self.starts_as_it_is = gentle_start
        if gentle_start:
            takes, scaling = gentle_takes(takes), gentle_scales(scaling)
        self._spec = GenomeSpec((*takes, *scaling, *merges))

    @property
    def spec(self) -> GenomeSpec:
        """The genes: indicators in the order of the slots, scales, then those of the merges."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe; depends on nothing but the genome and the construction.

        Raises:
            ConfigError: the genome is not one of this space (length, bounds, types).
            InfeasibleError: the path is empty or beyond the limits, a scale cannot be, or weights of a layer that is
                taken cannot be normalised.
        """
        self._spec.check(genome)
        takes, scales, merges = self._parts(genome)
        slots = self._path([slot for slot, value in zip(self._free, takes, strict=True) if value])
        self._check(slots)
        input_scales = [1.0, *(self._scaling.scale(before, slot, scales) for before, slot in pairwise(slots))]
        written = factors(input_scales, self._pool.info.dtype)
        return self._pool.recipe(self._slices(slots, written, Genome(merges)), self._seed)

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the genes that the recipe depends on: indicators, and the scales and merges of slots taken."""
        takes, _, merges = self._parts(genome)
        slots = self._path([slot for slot, value in zip(self._free, takes, strict=True) if value])
        wanted = [slice_ for slot in slots for slice_ in self._wanted(slot)]
        acts = self._merges.acting(Genome(merges), [*wanted, *self._pool.outer])
        names = [gene.name for gene in self._spec.genes]
        offset = len(names) - len(merges)
        own = [name for name, gene in zip(names[offset:], self._merges.spec, strict=True) if gene.name in acts]
        return frozenset((*names[: len(takes)], *self._scaling.acting(slots), *own))

    def _parts(self, genome: Genome) -> tuple[tuple[Value, ...], tuple[Value, ...], tuple[Value, ...]]:
        """Values of the indicators, of the scales, and of the merge genes."""
        takes = len(self._free)
        scales = takes + len(self._scaling.genes)
        return genome.values[:takes], genome.values[takes:scales], genome.values[scales:]

    def _slices(self, slots: Sequence[int], written: Sequence[float], merges: Genome) -> Iterator[SliceRecipe]:
        for place, (slot, factor) in enumerate(zip(slots, written, strict=True)):
            layer = self._slots[slot]
            for entry in self._merges.entries(merges, self._wanted(slot)):
                slice_ = SliceId(entry.slice.component, place)
                source = layer if layer != place else None
                yield replace(
                    entry,
                    slice=slice_,
                    inputs=tuple(replace(given, layer=source) for given in entry.inputs),
                    base=None if entry.base is None else replace(entry.base, layer=source),
                    scale=slice_scale(slice_, factor),
                )
        for entry in self._merges.entries(merges, self._pool.outer):
            yield replace(entry, scale=slice_scale(entry.slice, written[-1]))

    def _wanted(self, slot: int) -> list[SliceId]:
        """The slices of the merges' own model that are in a slot."""
        layer = self._slots[slot]
        return [SliceId(component, layer if self._shared else slot) for component in self._pool.components(layer)]

    def _path(self, taken: Sequence[int]) -> list[int]:
        count = len(self._slots)
        return [*range(self._free.start), *taken, *range(self._free.stop, count)]

    def _check(self, slots: Sequence[int]) -> None:
        model = "the pool"
        self._limits.check([(model, self._slots[slot]) for slot in slots], self._pool)

    def _start(self) -> set[int]:
        """The slots of the path that a search starts from: every layer once, made to fit the limits."""
        ends = {self._slots[slot] for slot in self._path([])}
        body = [slot for slot in self._free if slot < self._pool.info.layers and self._slots[slot] not in ends]
        return starting_path(body, self._free, lambda taken: self._check(self._path(taken)))


def _of_slots(pool: PoolInfo, slots: Sequence[int]) -> PoolInfo:
    """A pool with a layer for every slot."""
    inner = [SliceId(s.component, slot) for slot, layer in enumerate(slots) for s in pool.slices if s.layer == layer]
    before = [s for s in pool.slices if s.component == "embed"]
    after = [s for s in pool.slices if s.layer is None and s.component != "embed"]
    equal = {(s.component, s.layer) for s in pool.constant}
    constant = [s for s in pool.constant if s.layer is None]
    constant += [s for s in inner if s.layer is not None and (s.component, slots[s.layer]) in equal]
    return replace(pool, slices=(*before, *inner, *after), layers=len(slots), sizes=(), constant=tuple(constant))


def _of_slots_name(name: str) -> str:
    """The name of a gene of slots rather than of layers: ``slots.7/math/weight``."""
    return re.sub(r"(^|\+)layers([.@])", r"\1slots\2", name)
