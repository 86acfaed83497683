"""The space of lineages: merges of merges of the pool, split at any parameter.

The individuals of M2N2 on language models (arXiv 2508.16204, sections 3.1 and 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import Bounds, LineageGenome, LineageSpec
from evomerge.recipes.method_spec import ByTensor, MethodSpec, Value
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import read_recipe_file
from search_spaces.chromosomes import Split, chromosomes_of, tensor_parts
from search_spaces.seeds import adopted

KEY = "search_space"
_KEPT = 4096  # decoded genomes; those that others descend from are held by them anyway


class LineageSpace:
    """Children of two merged models, of which the seeds are the first; implements `protocols.SearchSpace`.

    A child of A and B has a mix w and a split for every chromosome: parameters before the split are at w on the way
    from A to B, those after it at ``1 - w``. The recipe of a child takes its parents as intermediates, which are
    rounded to the pool's dtype as if they had been written, and shares their recipes with all who descend from them.
    A flattened one is a weighted sum of the seeds instead, the weights multiplied out in float64: it is rounded once,
    and it is what is scored. Slices that are equal in all models (`PoolInfo.constant`) are in no chromosome, unless
    seeds are merged models.

    Args:
        pool: what recipes are made of.
        methods: declarations by name.
        method: the path from A to B: ``slerp`` of every tensor by itself, or ``linear``.
        split: where a split may lie: between two slices, between two tensors, or at any element. Splits are uniform
            over a chromosome's parameters and go to the nearest such place.
        chromosomes: lists of ``attn mlp norm embed final_norm head`` that have a mix and a split of their own;
            components of no list are one more chromosome. None is the whole model in one.
        seeds: models of the pool to begin with; its sources by default.
        recipes: further seeds by name: files of recipes over the pool's models.
        winner: the best recipe of the phase before: one more seed, ``winner``.
        mix: bounds of w, as ``{low, high}``.
        flatten: write the recipe as one weighted sum of the seeds; where that is possible by default (``method:
            linear`` without splits inside of tensors).

    Raises:
        ConfigError: anything of the above that cannot be; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        method: Literal["slerp", "linear"] = "slerp",
        split: Split = "tensor",
        chromosomes: list[list[str]] | None = None,
        seeds: list[str] | None = None,
        recipes: dict[str, str] | None = None,
        winner: Recipe | None = None,
        mix: dict[str, float] | None = None,
        flatten: bool | None = None,
    ) -> None:
        for key, value, known in (("method", method, ("slerp", "linear")), ("split", split, _SPLITS)):
            if value not in known:
                raise ConfigError(f"{KEY}.{key} is {value!r}", nearest(value, known))
        if pool.uneven:
            raise ConfigError(pool.uneven, "lineages merge models layer by layer", "leave the others out of the pool")
        if flatten and (method != "linear" or split == "element"):
            raise ConfigError(
                f"{KEY}.flatten is true with method={method} and split={split}",
                "weighted sums of whole tensors: method=linear, split=tensor or slice",
            )
        unknown = set(mix or {}) - {"low", "high"}
        if unknown:
            raise ConfigError(f"{KEY}.mix has {sorted(unknown)[0]!r}", "low, high")
        self._pool, self._method, self._split = pool, method, split
        self._flatten = flatten if flatten is not None else method == "linear" and split != "element"
        self._stages = _recipes(pool, recipes or {}, winner)
        names = [*(pool.sources if seeds is None else seeds), *self._stages]
        for name in names:
            if name not in self._stages and name not in dict(pool.refs):
                raise ConfigError(f"{KEY}.seeds has {name!r}", nearest(name, dict(pool.refs)))
        # What is equal in all models stays so in their children; merged seeds may have something else there.
        self._equal = frozenset(pool.constant if not self._stages else ())
        if self._equal.issuperset(pool.slices):
            raise ConfigError("the models of the pool are equal in every slice", "models that differ")
        self._chromosomes = chromosomes_of(pool, split, chromosomes or [], f"{KEY}.chromosomes", self._equal)
        try:
            bounds = Bounds(**(mix or {}))
            self._spec = LineageSpec(names, [chromosome.name for chromosome in self._chromosomes], bounds)
        except ConfigError as error:
            raise ConfigError(f"{KEY}: {error.given}", error.allowed) from None
        wanted = {"linear", method} | ({"crossover"} if split == "element" else set())
        for name in sorted(wanted - set(methods)):
            raise ConfigError(f"{KEY} needs the merge method {name!r}", nearest(name, methods))
        self._tensors = {slice_: tuple(name for name, _ in tensor_parts(pool, slice_)) for slice_ in pool.slices}
        self._made: dict[str, Recipe] = {}
        self._sums: dict[str, dict[SliceId, NDArray[np.float64]]] = {}

    @property
    def spec(self) -> LineageSpec:
        """The seeds and chromosomes."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe.

        Raises:
            ConfigError: the genome is none of this space's.
        """
        self._spec.check_step(genome)
        assert isinstance(genome, LineageGenome), "checked above"
        kept: Mapping[str, Any] = self._sums if self._flatten else self._made
        todo = [(genome, False)]
        while todo:  # parents first; a lineage may be deeper than Python's stack
            each, complete = todo.pop()
            if each.digest in kept:
                continue
            if not complete:
                self._spec.check_step(each)
                todo += [(each, True), *((parent, False) for parent in reversed(each.parents))]
            elif self._flatten:
                self._sums[each.digest] = self._sum(each)
            else:
                self._made[each.digest] = self._step(each)
        recipe = self._flat(self._sums[genome.digest]) if self._flatten else self._made[genome.digest]
        for memory in (self._made, self._sums):
            while len(memory) > _KEPT:
                del memory[next(iter(memory))]
        return recipe

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}, "_sums": {}}  # what was decoded is no part of a space

    def _step(self, genome: LineageGenome) -> Recipe:
        """The recipe of a genome whose parents have theirs."""
        if not genome.parents:
            name = str(genome.values[0])
            return self._stages.get(name) or self._pool.linear({name: 1.0})
        names = [self._name(parent) for parent in genome.parents]
        stages = {n: self._made[p.digest] for n, p in zip(names, genome.parents, strict=True) if self._is_stage(p)}
        slices = []
        for number, chromosome in enumerate(self._chromosomes):
            mix, split = (float(genome.values[2 * number + k]) for k in (0, 1))
            for slice_, cuts in chromosome.cut(split).items():
                slices.append(self._slice(slice_, names, mix, cuts))
        slices += [self._weighted(slice_, {names[0]: 1.0}) for slice_ in self._equal]
        info = self._pool
        own = tuple(stages.items())
        fields = info.dtype, info.config_from, 0, own, info.tokenizer_from, info.calibration
        return Recipe(info.refs, tuple(slices), *fields, info.tokenizer, info.heads)

    def _slice(self, slice_: SliceId, names: list[str], mix: float, cuts: tuple[float, ...]) -> SliceRecipe:
        """One slice, of whose tensors the shares `cuts` come before the split; one share where they are equal."""
        if any(0 < cut < 1 for cut in cuts):
            share = self._by_tensor(slice_, cuts)
            values = parameters({"t": mix, "split": share, "path": self._method})
            return SliceRecipe(slice_, "crossover", tuple(Input(name) for name in names), values)
        ts = tuple(mix if cut else 1.0 - mix for cut in cuts)
        if self._method == "slerp":
            inputs = tuple(Input(name) for name in names)
            return SliceRecipe(slice_, "slerp", inputs, parameters({"t": self._by_tensor(slice_, ts)}))
        weights = tuple(1.0 - t for t in ts), ts
        return self._weighted(slice_, {n: self._by_tensor(slice_, w) for n, w in zip(names, weights, strict=True)})

    def _sum(self, genome: LineageGenome) -> dict[SliceId, NDArray[np.float64]]:
        """Weights of the seeds by slice, of shape ``(tensors or 1, seeds)``."""
        if not genome.parents:
            own = np.zeros((1, len(self._spec.seeds)))
            own[0, self._spec.seeds.index(str(genome.values[0]))] = 1.0
            return dict.fromkeys(self._pool.slices, own)
        first, second = (self._sums[parent.digest] for parent in genome.parents)
        found = {slice_: first[slice_] for slice_ in self._equal}
        for number, chromosome in enumerate(self._chromosomes):
            mix, split = (float(genome.values[2 * number + k]) for k in (0, 1))
            for slice_, cuts in chromosome.cut(split).items():
                t = np.where(np.array(cuts) > 0, mix, 1.0 - mix)[:, None]
                found[slice_] = (1.0 - t) * first[slice_] + t * second[slice_]
        return found

    def _flat(self, sums: Mapping[SliceId, NDArray[np.float64]]) -> Recipe:
        """One weighted sum of the seeds."""
        slices = []
        for slice_ in self._pool.slices:
            weights = sums[slice_]
            used = np.flatnonzero(weights.any(0))
            each = {self._spec.seeds[seed]: self._by_tensor(slice_, tuple(weights[:, seed].tolist())) for seed in used}
            slices.append(self._weighted(slice_, each))
        stages = {name: stage for name, stage in self._stages.items() if any(name in _inputs(s) for s in slices)}
        info = self._pool
        own = tuple(stages.items())
        fields = info.dtype, info.config_from, 0, own, info.tokenizer_from, info.calibration
        return Recipe(info.refs, tuple(slices), *fields, info.tokenizer, info.heads)

    def _weighted(self, slice_: SliceId, weights: Mapping[str, Value]) -> SliceRecipe:
        inputs = tuple(Input(name, None, (("weight", weight),)) for name, weight in weights.items())
        return SliceRecipe(slice_, "linear", inputs, (("normalize", False),))

    def _by_tensor(self, slice_: SliceId, values: tuple[float, ...]) -> Value:
        """One value for a slice, or one by tensor where they differ."""
        if len(set(values)) == 1:
            return values[0]
        names = self._tensors[slice_]
        entries: list[tuple[str | None, float]] = list(zip(names, values, strict=True))
        rest = entries.pop()[1]
        while entries and entries[-1][1] == rest:
            entries.pop()
        return ByTensor((*entries, (None, rest)))

    def _is_stage(self, genome: LineageGenome) -> bool:
        """Whether it is merged itself, rather than a model of the pool."""
        return bool(genome.parents) or str(genome.values[0]) in self._stages

    def _name(self, genome: LineageGenome) -> str:
        """What recipes call it: a seed by its name, others by generation and content."""
        if not genome.parents:
            return str(genome.values[0])
        return f"g{genome.generation}-{genome.digest[:12]}"


_SPLITS = ("slice", "tensor", "element")


def _inputs(entry: SliceRecipe) -> set[str]:
    return {source.model for source in entry.inputs}


def _recipes(pool: PoolInfo, files: Mapping[str, str], winner: Recipe | None) -> dict[str, Recipe]:
    """The seeds that are merged models, over the pool's own models."""
    found = {}
    for name, file in files.items():
        try:
            found[name] = adopted(read_recipe_file(Path(file).expanduser(), file), pool)
        except RecipeError as error:
            raise ConfigError(f"{KEY}.recipes.{name}: {error.given}", error.allowed, error.do) from error
    if winner is not None:
        found["winner"] = adopted(winner, pool)
    stages: dict[str, Recipe] = {}
    for recipe in found.values():
        for stage, content in recipe.stages.items():
            # Alone: those that it takes itself are in this loop too, and a lineage is long.
            if not stages.setdefault(stage, content).equals_alone(content):
                raise ConfigError(f"{KEY}.recipes: two intermediates are called {stage!r}", "one recipe for a name")
    for name in found:
        if name in stages or name in dict(pool.refs):
            raise ConfigError(f"{KEY}.recipes has {name!r}", "the name of no model and of no intermediate of a recipe")
    return found
