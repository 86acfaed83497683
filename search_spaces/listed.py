"""The listed space: recipes that are given by name, each a candidate; for baselines side by side and for grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec, Scalar
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import read_recipe_file
from search_spaces.methods import MethodChoice, method_choices
from search_spaces.ranges import Choice, Range

GENE = "recipe"
MEAN = "mean"
"""A weight of one over the number of inputs."""
_KEYS = ("method", "parameters", "recipe")


class ListedSpace:
    """One gene, the name of a recipe; implements `protocols.SearchSpace`. ``strategy=brute_force`` scores each once.

    Args:
        pool: what recipes are made of. Every slice is merged with the sources in order, as in `ParameterSpace`.
        methods: declarations by name.
        recipes: by name ``{method, parameters}``: the same on every slice, parameters that are not given have the
            method's defaults, and a ``weight`` of ``mean`` is one over the number of inputs; or ``{recipe: FILE}``, a
            recipe of these models; or the name of a method alone.
        mask_seed: of the random masks of methods that drop weights.

    Raises:
        ConfigError: no recipes, a key that there is not, a method that does not fit the pool, or values out of bounds.
        RecipeError: a file that is no recipe, or one of other models.
    """

    def __init__(
        self, pool: PoolInfo, methods: Mapping[str, MethodSpec], *, recipes: dict[str, Any], mask_seed: int = 0
    ) -> None:
        if not recipes:
            raise ConfigError("search_space.recipes is empty", "a recipe or more, by name")
        self._pool, self._seed = pool, mask_seed
        self._recipes = {str(name): self._made(str(name), entry, methods) for name, entry in recipes.items()}
        self._spec = GenomeSpec((Gene(GENE, "categorical", choices=tuple(self._recipes)),))

    @property
    def spec(self) -> GenomeSpec:
        """The gene."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of this name.

        Raises:
            ConfigError: the genome is of another space.
        """
        self._spec.check(genome)
        return replace(self._recipes[str(genome.values[0])])  # a recipe notes its hash when it is asked for it

    def encode(self, recipe: Recipe) -> Genome:
        """The genome of a recipe that is listed; `RecipeError` for any other."""
        for name, own in self._recipes.items():
            if replace(own).hash == recipe.hash:
                return self._spec.genome([name])
        raise RecipeError("it is none of the listed recipes", f"one of {', '.join(self._recipes)}")

    def _made(self, name: str, entry: Any, methods: Mapping[str, MethodSpec]) -> Recipe:
        key = f"search_space.recipes.{name}"
        entry = {"method": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or ("method" in entry) == ("recipe" in entry):
            raise ConfigError(f"{key} is {entry!r}", "{method, parameters}, or {recipe: FILE}")
        for word in entry:
            if word not in _KEYS or (word == "parameters" and "recipe" in entry):
                raise ConfigError(f"{key} has no key {str(word)!r}", nearest(str(word), _KEYS))
        if "recipe" in entry:
            return self._read(key, str(entry["recipe"]))
        return self._of_method(key, str(entry["method"]), entry.get("parameters") or {}, methods)

    def _read(self, key: str, file: str) -> Recipe:
        recipe, refs = read_recipe_file(Path(file), f"{key}.recipe={file}"), dict(self._pool.refs)
        for name, ref in recipe.models:
            if name not in refs or refs[name].identity != ref.identity:
                raise RecipeError(f"{key}.recipe={file}: its model {name} is not the pool's", "the same models")
        return recipe

    def _of_method(self, key: str, method: str, given: Mapping[str, Any], methods: Mapping[str, MethodSpec]) -> Recipe:
        spec = methods.get(method)
        options: dict[str, Any] = {own.name: own.default for own in spec.parameters} if spec is not None else {}
        weights = given.get("weight")
        if isinstance(weights, str) and weights != MEAN:
            allowed = f"a number, or {MEAN}: one over the number of sources"
            raise ConfigError(f"{key}.parameters.weight is {weights!r}", allowed, nearest(weights, [MEAN]))
        count = max(1, len(self._pool.sources))
        options |= {**given, **({"weight": 1.0 / count} if weights == MEAN else {})}
        (choice,) = method_choices(
            self._pool,
            methods,
            method,
            options,
            negative_weights=False,
            normalize=None,
            resolution=None,
            key=key,
        )
        inputs = tuple(Input(name, None, parameters(_values(choice, name, key))) for name in choice.inputs)
        shared = parameters(_values(choice, "", key))
        slices = (SliceRecipe(own, choice.name, inputs, shared, choice.base) for own in self._pool.slices)
        return self._pool.recipe(slices, self._seed)


def _values(choice: MethodChoice, source: str, key: str) -> dict[str, Scalar]:
    """Values of one input's parameters, or of the slice's own for the empty name."""
    values: dict[str, Scalar] = {}
    for parameter, found in choice.told(source):
        if isinstance(found, Range | Choice):
            raise ConfigError(
                f"{key}.parameters.{parameter.name} is a range", "one value: listed recipes search nothing"
            )
        values[parameter.name] = found
    return values
