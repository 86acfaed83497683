"""The space around one model: perturbations of low rank, and steps made of them.

What EGGROLL (arXiv 2511.16652) searches: the weights of a model, a merge that was found say, themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import LineageGenome
from evomerge.genomes.perturbations import PerturbationSpec
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import UNIFORM, PoolInfo, baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import EVERY_COMPONENT, Input, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import read_recipe_file
from search_spaces.seeds import adopted

KEY = "search_space"
_METHODS = ("low_rank_noise", "passthrough")
_KEPT = 64  # recipes of models that others step from
_MOST_RANK = 1024


class PerturbationSpace:
    """One model, steps from it and members of a population around each; implements `protocols.SearchSpace`.

    A step's recipe takes the model before it as an intermediate in float32, and is rounded to the pool's dtype once: a
    hundred steps that are each less than the rounding of bfloat16 add up. Matrices of the components are perturbed,
    vectors stay as they are.

    Args:
        pool: what recipes are made of.
        methods: declarations by name.
        start: a model of the pool, ``uniform average``, or the file of a recipe over the pool's models: a search's
            ``best/recipe.yaml``. ``None`` is the winner of the phase before, or else the uniform average.
        winner: the best recipe of the phase before.
        rank: of a perturbation; the paper's is 1.
        components: whose matrices are perturbed, of ``attn mlp norm embed final_norm head``.

    Attributes:
        starts_as_it_is: false: the strategy scores the start itself.

    Raises:
        ConfigError: anything of the above that cannot be; names the key.
    """

    starts_as_it_is = False

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        start: str | None = None,
        winner: Recipe | None = None,
        rank: int = 1,
        components: list[str] | None = None,
    ) -> None:
        for name in _METHODS:
            if name not in methods:
                raise ConfigError(f"{KEY} needs the merge method {name!r}", nearest(name, methods))
        if not 1 <= rank <= _MOST_RANK:
            raise ConfigError(f"{KEY}.rank is {rank}", f"1 to {_MOST_RANK}")
        chosen = ["attn", "mlp"] if components is None else list(components)
        for word in chosen:
            if word not in EVERY_COMPONENT:
                raise ConfigError(f"{KEY}.components has {word!r}", nearest(str(word), EVERY_COMPONENT))
        self._perturbed = frozenset(own for own in pool.slices if own.component in chosen)
        if not self._perturbed:
            known = ", ".join(dict.fromkeys(own.component for own in pool.slices))
            raise ConfigError(f"{KEY}.components is {chosen}", f"components of the pool's models: {known}")
        self._pool = pool
        self._start, self._name = _start_of(pool, start, winner)
        assert self._start.hash  # made now: decoding changes nothing of a space
        self._spec = PerturbationSpec(rank)
        self._made: dict[str, tuple[str, Recipe]] = {}

    @property
    def spec(self) -> PerturbationSpec:
        """The start and what can be done to it."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe.

        Raises:
            ConfigError: the genome is none of this space's.
        """
        self._spec.check_step(genome)
        assert isinstance(genome, LineageGenome), "checked above"
        todo = [genome]
        while todo[-1].parents and todo[-1].digest not in self._made:  # as many steps as a search had: no recursion
            todo.append(todo[-1].parents[0])
        recipe = self._start
        for each in reversed(todo):
            if each.digest in self._made:
                recipe = self._made[each.digest][1]
            elif each.parents:
                self._spec.check_step(each)
                recipe = self._step(each, recipe)
                self._made[each.digest] = each.digest, recipe
        while len(self._made) > _KEPT:
            del self._made[next(iter(self._made))]
        return recipe

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}}  # what was decoded is no part of a space

    def _step(self, genome: LineageGenome, before: Recipe) -> Recipe:
        """The recipe of a step from another's."""
        parent = genome.parents[0]
        if parent.parents:
            name, stages = f"step{parent.generation}-{parent.digest[:12]}", replace(before, dtype="float32")
            intermediates: tuple[tuple[str, Recipe], ...] = ((name, stages),)
        else:
            name = self._name
            intermediates = () if name in dict(self._pool.refs) else ((name, before),)
        seed, first, coefficients = self._spec.perturbations(genome)
        text = " ".join(repr(value) for value in coefficients)
        values = parameters({"coefficients": text, "first": first, "noise": seed, "rank": self._spec.rank})
        inputs = (Input(name),)
        slices = [
            SliceRecipe(own, "low_rank_noise", inputs, values)
            if own in self._perturbed
            else SliceRecipe(own, "passthrough", inputs)
            for own in self._pool.slices
        ]
        return self._pool.recipe(slices, intermediates=intermediates)


def _start_of(pool: PoolInfo, start: str | None, winner: Recipe | None) -> tuple[Recipe, str]:
    """The recipe that everything steps from, and its name in the recipes of steps."""
    if start is None:
        if winner is not None:
            return adopted(winner, pool), "winner"
        start = UNIFORM
    known = baseline_recipes(pool)
    if start in dict(pool.refs):
        return known.get(start) or pool.linear({start: 1.0}), start
    if start in known:
        return known[start], "start"
    file = Path(start).expanduser()
    if not file.is_file():
        names = [*dict(pool.refs), *([UNIFORM] if UNIFORM in known else [])]
        raise ConfigError(f"{KEY}.start is {start!r}", f"{nearest(start, names)}; or the file of a recipe")
    try:
        return adopted(read_recipe_file(file, start), pool), "start"
    except RecipeError as error:
        raise ConfigError(f"{KEY}.start: {error.given}", error.allowed, error.do) from error
