"""Merging of models that differ in depth: a map from layers to layers, as genes, beside those of a merge method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId, SliceRecipe
from search_spaces.parameter import KEY, ParameterSpace


class LayerMapSpace(ParameterSpace):
    """`ParameterSpace` over models of several depths: every layer of the result merges some layer of each source.

    The result has the depth of the model that gives the configuration. For every mapped source and every layer of the
    result a gene, ``map/deep/3``, says which of the source's layers is merged there. The values of a source are
    sorted, so that layers keep their order; they may repeat and leave layers out. At first layers are evenly spread:
    layer l of d takes round(l * (d_s - 1) / (d - 1)) of d_s. That layers of another depth can be merged at all where
    they are matched is the finding of Model Assembly Learning (arXiv 2503.21657) and of unconstrained merging (arXiv
    2410.13699), which matches layers by similarity; here a search finds the match.

    Args:
        pool: what recipes are made of; layers of its architecture must compute the same wherever they are.
        methods: declarations by name.
        mapped: sources with a map; ``None`` for all whose depth is not the result's.
        window: how far a layer may be from the even spread, in layers of the source; ``None`` for any.
        method, layer_group, components, interpolation, anchors, parameters, negative_weights, normalize, resolution,
            mask_seed: as for `ParameterSpace`.

    Raises:
        ConfigError: as for `ParameterSpace`; no source is mapped, or one is not that must be; a base of another depth.

    >>> from evomerge.recipes import MethodSpec, ModelRef, ParameterSpec, SliceId
    >>> slices = SliceId("attn", 0), SliceId("attn", 1)
    >>> refs = ("wide", ModelRef("org/wide")), ("deep", ModelRef("org/deep"))
    >>> pool = PoolInfo(refs, ("wide", "deep"), None, slices, 2, "bfloat16", depths=(("deep", 3),))
    >>> slerp = MethodSpec("slerp", (ParameterSpec("t", 0.5, searched=True),), min_inputs=2, max_inputs=2)
    >>> space = LayerMapSpace(pool, {"slerp": slerp}, method="slerp")
    >>> [gene.name for gene in space.spec]
    ['layers.0/t', 'layers.1/t', 'map/deep/0', 'map/deep/1']
    >>> [each.layer for each in space.decode(space.spec.initial).slices[1].inputs]
    [None, 2]
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        mapped: list[str] | None = None,
        window: int | None = None,
        method: str | list[str] = "linear",
        layer_group: int | str = "layer",
        components: str | list[list[str]] = "each",
        interpolation: Literal["none", "linear"] = "none",
        anchors: int = 3,
        parameters: dict[str, Any] | None = None,
        negative_weights: bool = False,
        normalize: bool | None = None,
        resolution: float | None = None,
        mask_seed: int = 0,
    ) -> None:
        if pool.immovable:
            raise ConfigError(
                f"{KEY} maps layers, and layers of this architecture cannot change places: {pool.immovable}",
                "architectures whose layers compute the same wherever they are",
                "leave models of other depths out of the pool",
            )
        others = [name for name in pool.sources if pool.depth(name) != pool.layers]
        chosen = others if mapped is None else list(mapped)
        for name in chosen:
            if name not in pool.sources:
                raise ConfigError(f"{KEY}.mapped names {name!r}", nearest(str(name), pool.sources), "name sources")
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"{KEY}.mapped is {', '.join(chosen)}", "every source once")
        left = next((name for name in others if name not in chosen), None)
        if left is not None:
            raise ConfigError(
                f"{KEY}.mapped leaves out {left!r}, of {pool.depth(left)} layers where the result has {pool.layers}",
                f"sources of {pool.layers} layers may be left out",
                f"add it, or leave {KEY}.mapped out",
            )
        if not chosen:
            raise ConfigError(
                f"all sources have {pool.layers} layers, and {KEY} maps those of other depths",
                "a pool of several depths, or sources by name",
                f"choose search_space=parameter, or set {KEY}.mapped=[{pool.sources[-1]}]",
            )
        if pool.base is not None and pool.depth(pool.base) != pool.layers:
            raise ConfigError(
                f"the base {pool.base!r} has {pool.depth(pool.base)} layers, and the result {pool.layers}",
                "a base of the result's depth: differences are taken from its layers in their places",
                "leave pool.base out, and choose a method without one",
            )
        if window is not None and (isinstance(window, bool) or window < 0):
            raise ConfigError(f"{KEY}.window is {window}", "a number of layers, 0 or more; null for any")
        self._maps = {name: _genes(name, pool.depth(name), pool.layers, window) for name in chosen}
        super().__init__(
            replace(pool, depths=()),
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

    def entries(self, genome: Genome, slices: Iterable[SliceId]) -> Iterator[SliceRecipe]:
        """How the genome, one of this space, makes some of the pool's slices; layers of mapped sources as it says.

        Raises:
            InfeasibleError: as for `ParameterSpace.entries`.
        """
        maps = {name: self._map(genome, genes) for name, genes in self._maps.items()}
        for entry in super().entries(genome, slices):
            layer = entry.slice.layer
            if layer is None:
                yield entry
                continue
            inputs = tuple(
                replace(own, layer=maps[own.model][layer]) if own.model in maps else own for own in entry.inputs
            )
            yield replace(entry, inputs=inputs)

    def acting(self, genome: Genome, slices: Iterable[SliceId]) -> frozenset[str]:
        """The names of the genes that some of the pool's slices depend on; as they are sorted, all of a map do."""
        slices = tuple(slices)
        own = [gene.name for gene in self._further_genes()] if any(s.layer is not None for s in slices) else []
        return super().acting(genome, slices).union(own)

    def _map(self, genome: Genome, genes: tuple[Gene, ...]) -> list[int]:
        """The layers of a source that the layers of the result take, in order."""
        return sorted(int(self._spec.value(genome, gene.name)) for gene in genes)

    def _further_genes(self) -> list[Gene]:
        return [gene for genes in self._maps.values() for gene in genes]

    def _completed(self, genome: Genome, recipe: Recipe) -> Genome:
        told = {
            f"map/{own.model}/{entry.slice.layer}": own.layer
            for entry in recipe.slices
            for own in entry.inputs
            if own.model in self._maps and entry.slice.layer is not None and own.layer is not None
        }
        values = zip(self._spec.genes, genome.values, strict=True)
        return self._spec.genome([told.get(gene.name, value) for gene, value in values])


def _genes(source: str, depth: int, layers: int, window: int | None) -> tuple[Gene, ...]:
    """The genes of a source's map."""
    found = []
    for layer in range(layers):
        even = round(layer * (depth - 1) / max(1, layers - 1))
        low, high = (0, depth - 1) if window is None else (max(0, even - window), min(depth - 1, even + window))
        found.append(Gene(f"map/{source}/{layer}", "integer", low, high, even))
    return tuple(found)
