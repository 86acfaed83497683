"""The parameter space: merge methods, and their parameters, by layer group and component.

The parameter-space merging of EvoLLM (arXiv 2403.13187, section 3.1), for any methods that declare their
parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from evomerge.errors import ConfigError, InfeasibleError, RecipeError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec, Scalar
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from search_spaces.encoding import difference, nearest_genome
from search_spaces.groups import AUTO, Shares, component_lists, layer_anchors, layer_groups, sharings
from search_spaces.methods import MethodChoice, gene_prefixes, method_choices
from search_spaces.ranges import SMALLEST_SUM, Choice, Range

KEY = "search_space"


class ParameterSpace:
    """Genes for methods and their parameters, shared by groups of slices; implements `protocols.SearchSpace`.

    A gene group (say, the attention of layers 0 to 3) has a gene for every searched parameter: one per
    input for ``weight`` and its like, one in all for ``t``. Genes are called ``layers.0-3.attn/math/weight``
    or ``layers.2/t``, and come group by group in model order.

    With a list of methods every group begins with a gene that chooses its method, ``layers.0-3.attn/method``.
    Methods share the genes of parameters that they declare alike and of which the search explores the same
    (``layers.2/math/weight``); the others' names begin with the method (``layers.2/slerp/t``), see
    `gene_prefixes`. Genes that the chosen method does not have are silent: the recipe does not depend on them.

    Slices that are equal in all models (`PoolInfo.constant`) come out as they are where every method is idempotent
    (`MethodSpec`): groups of nothing else have no genes.

    Args:
        pool: what recipes are made of. The inputs of every slice are the sources in order; for a method of
            two inputs and a pool of one source, the base and the source.
        methods: declarations by name.
        method: the merge method, or a list of methods to choose from.
        layer_group: how many layers share genes, ``layer`` (each its own) or ``all``; the last group may
            be shorter. ``auto`` is ``layer``, unless a search chooses by its budget (`finest_first`).
        components: lists of ``attn mlp norm embed final_norm head`` that share genes within a layer group
            (those not listed form one more list); ``each`` its own, or ``all`` of a layer together. Words
            that the pool has no slice for are passed over. With ``layer_group=all`` a list may mix
            components of layers with others. ``auto`` is ``each``, likewise.
        interpolation: ``linear`` puts genes at `anchors` evenly spaced depths and interpolates the layers
            between them; ``layer_group`` is then left at ``layer``. Methods and words are those of the nearer
            anchor, the earlier of two that are equally near; between anchors of different methods, numbers too.
        anchors: how many depths; from 2 to the number of layers.
        parameters: by parameter, a fixed value; or ``{low, high, initial, resolution}`` (any of them) to
            search a range, whole numbers where the parameter is one; or a list of words, or of true and false,
            to choose from. Options under a method's name are for that method alone: ``{weight: {high: 1.5},
            ties: {density: 0.3}}``. Of parameters of inputs any of these by source: ``{metric: {math: 0.3,
            lang: 0.5}}``, ``{weight: {high: 1.5, lang: {high: 0.5}}}``. What is not given is searched where its
            declaration says so (``weight``, ``density``, ``t``), else fixed at its default.
        negative_weights: lets weights go as far below zero as above.
        normalize: the methods' ``normalize``; their defaults for ``None``.
        resolution: grid step for all genes of real numbers that have none of their own; interpolated values are
            snapped too.
        mask_seed: seed of the recipes, for methods that drop weights at random.

    Attributes:
        left_out: names of the genes that groups of equal slices would have.

    Raises:
        ConfigError: anything of the above that cannot be, or models that are equal in all; names the key.

    >>> from evomerge.recipes import MethodSpec, ModelRef, ParameterSpec, SliceId
    >>> slices = SliceId("embed"), SliceId("attn", 0), SliceId("attn", 1)
    >>> refs = ("math", ModelRef("org/math")), ("code", ModelRef("org/code"))
    >>> pool = PoolInfo(refs, ("math", "code"), None, slices, layers=2, dtype="bfloat16")
    >>> slerp = MethodSpec("slerp", (ParameterSpec("t", 0.5, searched=True),), min_inputs=2, max_inputs=2)
    >>> space = ParameterSpace(pool, {"slerp": slerp}, method="slerp")
    >>> [gene.name for gene in space.spec]
    ['embed/t', 'layers.0/t', 'layers.1/t']
    >>> space.decode(space.spec.initial).slices[2].parameters
    (('t', 0.5),)
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        method: str | list[str] = "task_arithmetic",
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
        if not 0 <= mask_seed < 2**63:
            raise ConfigError(f"{KEY}.mask_seed is {mask_seed}", "an integer from 0 to 2^63 - 1")
        if pool.uneven:
            raise ConfigError(
                pool.uneven,
                "merge methods go layer by layer, over models of one depth",
                "search paths through their layers (search_space=data_flow), or leave the others out of the pool",
            )
        self._pool = pool
        self._seed = mask_seed
        self._choices = method_choices(
            pool,
            methods,
            method,
            parameters or {},
            negative_weights=negative_weights,
            normalize=normalize,
            resolution=resolution,
            key=KEY,
        )
        self._by_name = {choice.name: choice for choice in self._choices}
        lists = component_lists(components, f"{KEY}.components")
        if interpolation == "linear":
            if layer_group not in ("layer", AUTO):
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
        self._prefixes = gene_prefixes(self._choices)
        # With methods that may change what is equal, such as sums of weights that are not normalised, genes count.
        self._equal = frozenset(pool.constant if all(choice.idempotent for choice in self._choices) else ())
        if self._equal.issuperset(pool.slices):
            raise ConfigError(
                f"the models of the pool are equal in every slice: {', '.join(name for name, _ in pool.refs)}",
                "models that differ",
                "look at their places in pool.models",
            )
        merged = {shares for slice_, shares in self._sharing.shares.items() if slice_ not in self._equal}
        groups = {group for shares in merged for group, _ in shares}
        self._index: dict[tuple[int, str, str, str], int] = {}
        self._spec = GenomeSpec((*self._genes(groups), *self._further_genes()))
        every = range(len(self._sharing.names))
        self.left_out = tuple(gene.name for gene in self._genes([i for i in every if i not in groups], {}))
        self._copied = self._choices[0].copied(pool.slices[0])
        shares = {*merged, *(((i, 1.0),) for i in groups)}
        self._places = {
            (choice.name, shared, source): list(self._find(choice, shared, source))
            for choice in self._choices
            for shared in shares
            for source in (*choice.inputs, "")
        }

    @staticmethod
    def finest_first(settings: Mapping[str, Any], pool: PoolInfo) -> Iterator[dict[str, Any]]:
        """What ``layer_group`` and ``components`` can be where they are ``auto``, with ever fewer genes."""
        whole = settings.get("interpolation", "none") != "none"
        given = {key: settings[key] for key in ("layer_group", "components") if settings.get(key) == AUTO}
        for pair in sharings(settings.get("layer_group"), settings.get("components"), pool.layers, whole):
            found = dict(zip(("layer_group", "components"), pair, strict=True))
            yield {key: found[key] for key in given}

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
        return self._pool.recipe(self.entries(genome, self._pool.slices), self._seed)

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe over this pool's models, which `decode` turns into the recipe again.

        Raises:
            RecipeError: no genome means this recipe, or it is of other models; names a slice.
        """
        refs = dict(self._pool.refs)
        for name, ref in recipe.models:
            if name not in refs or refs[name].identity != ref.identity:
                raise RecipeError(f"its model {name} is not the pool's", "a recipe of the pool's models")
        told = {slice_: shares for slice_, shares in self._sharing.shares.items() if slice_ not in self._equal}
        found = self._completed(nearest_genome(self._spec, self._index, self._prefixes, told, recipe), recipe)
        wanted = {entry.slice: entry for entry in recipe.slices}
        for made in self.decode(found).slices:
            if made.slice not in self._equal and made.slice in wanted:
                if said := difference(made, wanted[made.slice]):
                    do = "search_space.parameters and layer_group say what there is"
                    raise RecipeError(f"slice {made.slice} has {said}", "what a genome of this space can say", do)
            elif made.slice not in wanted:
                raise RecipeError(f"slice {made.slice} is not in it", "a recipe of all slices of the pool")
        return found

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the genes that the recipe depends on: not the parameters of methods that were not chosen."""
        return self.acting(genome, self._pool.slices)

    def acting(self, genome: Genome, slices: Iterable[SliceId]) -> frozenset[str]:
        """The names of the genes that some of the pool's slices depend on."""
        found: set[int] = set()
        for shares in {self._sharing.shares[slice_] for slice_ in slices if slice_ not in self._equal}:
            choice, used = self._chosen(shares, genome)
            if len(self._choices) > 1:
                found.update(self._index[group, "", "", "method"] for group, _ in shares)
            for source in (*choice.inputs, ""):
                found.update(gene for _, _, genes in self._places[choice.name, used, source] for gene in genes)
        return frozenset(self._spec.genes[gene].name for gene in found)

    def entries(self, genome: Genome, slices: Iterable[SliceId]) -> Iterator[SliceRecipe]:
        """How the genome, one of this space, makes some of the pool's slices.

        Raises:
            InfeasibleError: weights to be normalised sum to zero in one of these slices.
        """
        made: dict[Shares, SliceRecipe] = {}  # slices of a group are alike
        return (self._slice(slice_, genome, made) for slice_ in slices)

    def _genes(self, groups: Collection[int], index: dict[tuple[int, str, str, str], int] | None = None) -> list[Gene]:
        """The genes, group by group; fills the index of (group, prefix, input, parameter), or another one."""
        genes: list[Gene] = []
        index = self._index if index is None else index
        sources = dict.fromkeys(name for choice in self._choices for name in choice.inputs)
        for number, group in enumerate(self._sharing.names):
            if number not in groups:
                continue
            if len(self._choices) > 1:
                index[number, "", "", "method"] = len(genes)
                genes.append(Gene(f"{group}/method", "categorical", choices=tuple(self._by_name)))
            for source in (*sources, ""):
                for choice in self._choices:
                    if source and source not in choice.inputs:
                        continue
                    for parameter, found in choice.told(source):
                        key = (number, self._prefixes[choice.name, parameter.name], source, parameter.name)
                        if isinstance(found, Range | Choice) and key not in index:
                            index[key] = len(genes)
                            genes.append(found.gene("/".join(part for part in (group, *key[1:]) if part)))
        return genes

    def _further_genes(self) -> list[Gene]:
        """Genes after those of the groups."""
        return []

    def _completed(self, genome: Genome, recipe: Recipe) -> Genome:
        """The genome with what the recipe says of further genes."""
        return genome

    def _slice(self, slice_: SliceId, genome: Genome, made: dict[Shares, SliceRecipe]) -> SliceRecipe:
        if slice_ in self._equal:
            return replace(self._copied, slice=slice_)
        shares = self._sharing.shares[slice_]
        alike = made.get(shares)
        if alike is None:
            alike = made[shares] = self._first(slice_, shares, genome)
            return alike
        return SliceRecipe(slice_, alike.method, alike.inputs, alike.parameters, alike.base)

    def _first(self, slice_: SliceId, shares: Shares, genome: Genome) -> SliceRecipe:
        """A slice that is the first of its group."""
        choice, shares = self._chosen(shares, genome)
        each = {name: self._values(choice, shares, name, genome) for name in choice.inputs}
        values = self._values(choice, shares, "", genome)
        if values.get("normalize") is True and choice.spec.parameter("weight"):
            total = sum(float(own["weight"]) for own in each.values())
            if abs(total) < SMALLEST_SUM:
                raise InfeasibleError(f"the weights of slice {slice_} sum to {total:g}", "they cannot be normalised")
        inputs = tuple(Input(name, None, parameters(own)) for name, own in each.items())
        return SliceRecipe(slice_, choice.name, inputs, parameters(values), choice.base)

    def _chosen(self, shares: Shares, genome: Genome) -> tuple[MethodChoice, Shares]:
        """The method of a slice, and the gene groups that its values come from: those that chose this method."""
        if len(self._choices) == 1:
            return self._choices[0], shares
        methods = [str(genome.values[self._index[group, "", "", "method"]]) for group, _ in shares]
        nearer = max(range(len(shares)), key=lambda i: shares[i][1])
        if any(method != methods[nearer] for method in methods):
            shares = ((shares[nearer][0], 1.0),)
        return self._by_name[methods[nearer]], shares

    def _values(self, choice: MethodChoice, shares: Shares, source: str, genome: Genome) -> dict[str, Scalar]:
        """Values of one input's parameters, or of the slice's own for the empty name."""
        values: dict[str, Scalar] = {}
        for name, fixed, genes in self._places[choice.name, shares, source]:
            values[name] = fixed if fixed is not None else self._value(genes, shares, genome)
        return values

    def _find(
        self, choice: MethodChoice, shares: Shares, source: str
    ) -> Iterator[tuple[str, Scalar | None, list[int]]]:
        """Where `_values` finds what."""
        for spec, found in choice.told(source):
            if isinstance(found, Range | Choice):
                prefix = self._prefixes[choice.name, spec.name]
                yield spec.name, None, [self._index[group, prefix, source, spec.name] for group, _ in shares]
            else:
                yield spec.name, found, []

    def _value(self, genes: list[int], shares: Shares, genome: Genome) -> Scalar:
        first, kind = genome.values[genes[0]], self._spec.genes[genes[0]]
        if len(genes) == 1 and kind.kind == "continuous":
            return float(first)
        values = [genome.values[gene] for gene in genes]
        if kind.kind in ("categorical", "boolean"):
            return kind.snap(values[max(range(len(shares)), key=lambda i: shares[i][1])])
        if len(values) == 1:
            return int(values[0]) if kind.kind == "integer" else float(values[0])
        return kind.snap(sum(share * float(value) for value, (_, share) in zip(values, shares, strict=True)))
