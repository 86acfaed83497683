"""The parameter space: one merge method whose parameters vary by layer group and component.

The parameter-space merging of EvoLLM (arXiv 2403.13187, section 3.1), for any method that declares its
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from evomerge.errors import ConfigError, InfeasibleError, nearest
from evomerge.genome import Gene, Genome, GenomeSpec
from evomerge.method import MethodSpec, Scalar
from evomerge.recipe import Input, PoolInfo, Recipe, SliceId, SliceRecipe, parameters
from search_spaces.groups import component_lists, layer_anchors, layer_groups
from search_spaces.ranges import SMALLEST_SUM, Option, Range, parameter_ranges

KEY = "search_space"


class ParameterSpace:
    """Genes for a method's parameters, shared by groups of slices; implements `protocols.SearchSpace`.

    A gene group (say, the attention of layers 0 to 3) has a gene for every searched parameter: one per
    input for ``weight`` and its like, one in all for ``t``. Genes are called ``layers.0-3.attn/math/weight``
    or ``layers.2/t``, and come group by group in model order.

    Args:
        pool: what recipes are made of. The inputs of every slice are the sources in order; for a method of
            two inputs and a pool of one source, the base and the source.
        methods: declarations by name.
        method: the merge method.
        layer_group: how many layers share genes, ``layer`` (each its own) or ``all``; the last group may
            be shorter.
        components: lists of ``attn mlp norm embed final_norm head`` that share genes within a layer group
            (those not listed form one more list); ``each`` its own, or ``all`` of a layer together. Words
            that the pool has no slice for are passed over. With ``layer_group=all`` a list may mix
            components of layers with others.
        interpolation: ``linear`` puts genes at `anchors` evenly spaced depths and interpolates the layers
            between them; ``layer_group`` is then left at ``layer``.
        anchors: how many depths; from 2 to the number of layers.
        parameters: by parameter, a fixed value, or ``{low, high, initial, resolution}`` (any of them).
            ``weight``, ``density`` and ``t`` are searched unless fixed; others are fixed at their defaults
            unless given a range.
        negative_weights: lets weights go as far below zero as above.
        normalize: the method's ``normalize``; its default for ``None``.
        resolution: grid step for all genes that have none of their own; interpolated values are snapped too.
        mask_seed: seed of the recipes, for methods that drop weights at random.

    Raises:
        ConfigError: anything of the above that cannot be; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        method: str = "task_arithmetic",
        layer_group: int | str = "layer",
        components: str | list[list[str]] = "each",
        interpolation: Literal["none", "linear"] = "none",
        anchors: int = 3,
        parameters: dict[str, Option] | None = None,
        negative_weights: bool = False,
        normalize: bool | None = None,
        resolution: float | None = None,
        mask_seed: int = 0,
    ) -> None:
        if method not in methods:
            raise ConfigError(f"{KEY}.method is {method!r}", nearest(method, methods))
        if not 0 <= mask_seed < 2**63:
            raise ConfigError(f"{KEY}.mask_seed is {mask_seed}", "an integer from 0 to 2^63 - 1")
        self._pool = pool
        self._method = methods[method]
        self._inputs = _inputs(pool, self._method)
        self._base = _base(pool, self._method)
        self._seed = mask_seed
        lists = component_lists(components, f"{KEY}.components")
        if interpolation == "linear":
            if layer_group != "layer":
                raise ConfigError(
                    f"{KEY}.layer_group is {layer_group!r} with interpolation=linear",
                    "interpolation gives every layer its own value",
                    f"leave {KEY}.layer_group out and choose {KEY}.anchors",
                )
            self._sharing = layer_anchors(pool, anchors, lists, f"{KEY}.anchors")
        elif interpolation == "none":
            self._sharing = layer_groups(pool, layer_group, lists, f"{KEY}.layer_group")
        else:
            raise ConfigError(f"{KEY}.interpolation is {interpolation!r}", nearest(interpolation, ("none", "linear")))
        self._ranges = parameter_ranges(
            self._method,
            parameters or {},
            len(self._inputs),
            negative_weights=negative_weights,
            normalize=normalize,
            resolution=resolution,
            key=KEY,
        )
        genes: list[Gene] = []
        self._index: dict[tuple[int, str, str], int] = {}
        for number, group in enumerate(self._sharing.names):
            for source, name, found in self._searched():
                self._index[number, source, name] = len(genes)
                genes.append(found.gene("/".join(part for part in (group, source, name) if part)))
        self._spec = GenomeSpec(tuple(genes))

    @property
    def spec(self) -> GenomeSpec:
        """The genes."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe; depends on nothing but the genome and the construction.

        Raises:
            ConfigError: the genome is not one of this space (length, bounds, types).
            InfeasibleError: weights to be normalised sum to zero in some slice.
        """
        self._spec.check(genome)
        return self._pool.recipe((self._slice(slice_, genome) for slice_ in self._pool.slices), self._seed)

    def _searched(self) -> list[tuple[str, str, Range]]:
        """Input (empty for parameters of the slice), parameter and range of a group's genes, in order."""
        found: list[tuple[str, str, Range]] = []
        for source in (*self._inputs, ""):
            for spec in self._method.parameters:
                value = self._ranges[spec.name]
                if isinstance(value, Range) and spec.per_input == bool(source):
                    found.append((source, spec.name, value))
        return found

    def _slice(self, slice_: SliceId, genome: Genome) -> SliceRecipe:
        each = {name: self._values(slice_, name, genome) for name in self._inputs}
        inputs = tuple(Input(name, None, parameters(own)) for name, own in each.items())
        values = self._values(slice_, "", genome)
        if values.get("normalize") is True and self._method.parameter("weight"):
            total = sum(float(own["weight"]) for own in each.values())
            if abs(total) < SMALLEST_SUM:
                raise InfeasibleError(f"the weights of slice {slice_} sum to {total:g}", "they cannot be normalised")
        return SliceRecipe(slice_, self._method.name, inputs, parameters(values), self._base)

    def _values(self, slice_: SliceId, source: str, genome: Genome) -> dict[str, Scalar]:
        """Values of one input's parameters, or of the slice's own for the empty name."""
        values: dict[str, Scalar] = {}
        for spec in self._method.parameters:
            if spec.per_input == bool(source):
                found = self._ranges[spec.name]
                values[spec.name] = (
                    self._value(slice_, source, spec.name, genome) if isinstance(found, Range) else found
                )
        return values

    def _value(self, slice_: SliceId, source: str, name: str, genome: Genome) -> float:
        shares = self._sharing.shares[slice_]
        genes = [self._index[group, source, name] for group, _ in shares]
        if len(genes) == 1:
            return float(genome.values[genes[0]])
        mixed = sum(share * float(genome.values[gene]) for gene, (_, share) in zip(genes, shares, strict=True))
        return float(self._spec.genes[genes[0]].snap(mixed))


def _inputs(pool: PoolInfo, method: MethodSpec) -> tuple[str, ...]:
    """The models that enter every slice."""
    sources, most = pool.sources, method.max_inputs
    if method.min_inputs <= len(sources) and (most is None or len(sources) <= most):
        return sources
    if method.base == "none" and method.min_inputs == 2 and len(sources) == 1 and pool.base is not None:
        return (pool.base, *sources)
    wanted = f"exactly {most}" if most == method.min_inputs else f"{method.min_inputs} to {most or 'any number of'}"
    instead = ", or one and a base" if method.base == "none" and method.min_inputs == 2 else ""
    raise ConfigError(
        f"{KEY}.method is {method.name!r} and the pool has {len(sources)} source models ({', '.join(sources)})",
        f"{method.name} takes {wanted} source models{instead}",
        "choose another method, or change pool.models",
    )


def _base(pool: PoolInfo, method: MethodSpec) -> Input | None:
    """The model that differences are taken from, for methods that work on differences."""
    if method.base == "none":
        return None
    if pool.base is None:
        raise ConfigError(
            f"{KEY}.method is {method.name!r} and the pool has no base",
            f"{method.name} merges differences from a base model",
            "name one with pool.base, or choose a method without a base",
        )
    return Input(pool.base)
