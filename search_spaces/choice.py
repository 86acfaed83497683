"""Whole layers of one model or another: a choice for every group of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe
from search_spaces.groups import component_lists, layer_groups

KEY = "search_space"


class ChoiceSpace:
    """Each group of slices is as it is in one of the models; implements `protocols.SearchSpace`.

    A gene for every group, ``GROUP/model``, is a choice among the models. Nothing is averaged, moved or scaled: with
    variants of one model, such as mixtures with more and fewer distinct experts, the genes say which variant each layer
    is of.

    Args:
        pool: what there is; slices that are equal in all of its models have no genes.
        methods: not used: what is chosen stays as it is.
        models: to choose from, the first of which a search starts with; all sources by default.
        layer_group, components: which slices share a gene, as for `ParameterSpace`.

    Attributes:
        left_out: names of genes whose slices are equal in all models.

    Raises:
        ConfigError: fewer than two models, one that the pool does not have, models of different depths, or slices that
            are all equal; names the key.

    >>> from evomerge.recipes.slices import ModelRef, SliceId
    >>> refs = tuple((name, ModelRef(name)) for name in ("a", "b"))
    >>> info = PoolInfo(refs, ("a", "b"), None, (SliceId("mlp", 0), SliceId("mlp", 1)), 2, "float32")
    >>> space = ChoiceSpace(info, {})
    >>> [gene.name for gene in space.spec]
    ['layers.0/model', 'layers.1/model']
    >>> [entry.inputs[0].model for entry in space.decode(Genome(("b", "a"))).slices]
    ['b', 'a']
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        models: Sequence[str] | None = None,
        layer_group: int | str = "layer",
        components: str | list[list[str]] = "each",
    ) -> None:
        known = [name for name, _ in pool.refs]
        names = tuple(pool.sources if models is None else models)
        for number, name in enumerate(names):
            if name not in known:
                raise ConfigError(f"{KEY}.models[{number}] is {name!r}", nearest(str(name), known))
        if len(set(names)) < max(len(names), 2):
            raise ConfigError(f"{KEY}.models is {list(names)}", f"two or more of {', '.join(known)}, each once")
        if pool.uneven:
            raise ConfigError(pool.uneven, "models of one depth", "search_space=permutation takes layers of others")
        self._pool = pool
        lists = component_lists(components, f"{KEY}.components")
        sharing = layer_groups(pool, layer_group, lists, f"{KEY}.layer_group")
        self._group = {slice_: shares[0][0] for slice_, shares in sharing.shares.items()}
        free = {number for slice_, number in self._group.items() if slice_ not in set(pool.constant)}
        genes: list[Gene] = []
        left_out = []
        self._gene: dict[int, int] = {}
        for number, group in enumerate(sharing.names):
            if number in free:
                self._gene[number] = len(genes)
                genes.append(Gene(f"{group}/model", "categorical", choices=names))
            else:
                left_out.append(f"{group}/model")
        if not genes:
            raise ConfigError("all slices are equal in the models of the pool", "models that differ")
        self._first = names[0]
        self._spec = GenomeSpec(tuple(genes))
        self.left_out = tuple(left_out)

    @property
    def spec(self) -> GenomeSpec:
        """The genes."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The recipe that takes every slice from the chosen model.

        Raises:
            ConfigError: the genome is not one of this space.
        """
        self._spec.check(genome)
        entries = []
        for slice_ in self._pool.slices:
            gene = self._gene.get(self._group[slice_])
            name = self._first if gene is None else str(genome.values[gene])
            inputs = (Input(name, None, (("weight", 1.0),)),)
            entries.append(SliceRecipe(slice_, "linear", inputs, (("normalize", False),)))
        return self._pool.recipe(entries)
