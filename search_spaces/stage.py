"""One stage of several over the same genes: some are searched, the others stay as the stage before left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from search_spaces.parameter import KEY, ParameterSpace


class StageSpace:
    """The parameter space, of which the genes of some parameters are searched; implements `protocols.SearchSpace`.

    Evo-Merging searches keep-fractions first, with the scales as they start, and then the scales, with these
    fractions: two phases of one search, ``vary: [density]`` and ``vary: [weight]``. The genes that are not searched
    have the values of the winner of the phases before, or in the first phase those that they start with; those that
    are searched begin there, too.

    Args:
        pool, methods: as for `ParameterSpace`.
        vary: the parameters whose genes are searched, by name: ``weight``, ``density``, ``t``; ``method`` for the
            choice of one.
        winner: the best recipe of the phases before.
        options: as for `ParameterSpace`.

    Attributes:
        left_out: names of genes that are not searched.

    Raises:
        ConfigError: a parameter that has no genes, or anything that `ParameterSpace` refuses; names the key.
        RecipeError: the winner is none of this space, such as one of another method.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        vary: Sequence[str] = ("weight",),
        winner: Recipe | None = None,
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
        self._all = ParameterSpace(
            pool,
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
        genes = self._all.spec.genes
        known = list(dict.fromkeys(_parameter(gene) for gene in genes))
        wanted = [vary] if isinstance(vary, str) else list(vary)
        for name in wanted:
            if name not in known:
                raise ConfigError(f"{KEY}.vary has {name!r}, which has no genes", nearest(str(name), known))
        if not wanted:
            raise ConfigError(f"{KEY}.vary is empty", f"one or more of {', '.join(known)}")
        self._free = [number for number, gene in enumerate(genes) if _parameter(gene) in wanted]
        self._whole = self._all.encode(winner) if winner is not None else self._all.spec.initial
        self._spec = GenomeSpec(tuple(replace(genes[n], initial=self._whole.values[n]) for n in self._free))
        self.left_out = (*self._all.left_out, *(gene.name for gene in genes if _parameter(gene) not in wanted))

    @staticmethod
    def finest_first(settings: Mapping[str, Any], pool: PoolInfo) -> Iterator[dict[str, Any]]:
        """What ``layer_group`` and ``components`` can be where they are ``auto``, as of `ParameterSpace`."""
        return ParameterSpace.finest_first(settings, pool)

    @property
    def spec(self) -> GenomeSpec:
        """The genes that are searched."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome and of the values that stay.

        Raises:
            ConfigError: the genome is not one of this space.
            InfeasibleError: weights to be normalised sum to zero in some slice.
        """
        self._spec.check(genome)
        return self._all.decode(self._filled(genome))

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe that has the values which stay.

        Raises:
            RecipeError: no genome means this recipe, or what stays is otherwise in it; names a gene.
        """
        whole = self._all.encode(recipe)
        for number, gene in enumerate(self._all.spec):
            if number not in self._free and whole.values[number] != self._whole.values[number]:
                given = f"it has {gene.name} {whole.values[number]}, which is {self._whole.values[number]} here"
                raise RecipeError(given, "a recipe with the values that stay", f"{KEY}.vary says what is searched")
        return Genome(tuple(whole.values[number] for number in self._free))

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the searched genes that the recipe depends on."""
        return self._all.active(self._filled(genome)) & {gene.name for gene in self._spec}

    def _filled(self, genome: Genome) -> Genome:
        """All values: those searched, and those that stay."""
        values = list(self._whole.values)
        for number, value in zip(self._free, genome.values, strict=True):
            values[number] = value
        return Genome(tuple(values))


def _parameter(gene: Gene) -> str:
    """What a gene is of: the last part of its name."""
    return gene.name.rpartition("/")[2]
