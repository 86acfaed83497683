"""What candidates have in common, and what each adds to it: recipes that differ from one model by terms of low rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evomerge.errors import RecipeError
from evomerge.merge.adapters.at_once import Term, Terms
from evomerge.merge.adapters.exact import ExactAdapters
from evomerge.merge.adapters.places import Place, Places
from evomerge.merge.adapters.weighted import WeightedAdapters
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.methods.low_rank_noise import noise_factors
from evomerge.merge.mixes.masks import mask_key
from evomerge.merge.planning.slice_plan import Part, Plan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe

NOISE = "low_rank_noise"


@dataclass(frozen=True)
class Departure:
    """A candidate as a common model and what it adds.

    Attributes:
        common: the recipe of the common model.
        terms: by module what is added.
    """

    common: Recipe
    terms: Terms


class Commons:
    """Finds what candidates have in common.

    Two kinds are known: weighted sums of adapters on a base that the pool has, whose common model is the base; and
    perturbations (`low_rank_noise`) of one model, which is the common one.

    Args:
        pool: the source models.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._places: Places | None = None
        self._place: dict[str, Place] = {}
        self._adapters: ExactAdapters | None = None
        self._weighted: WeightedAdapters | None = None
        self._base: Recipe | None = None
        try:
            if any(isinstance(checkpoint, FoldedCheckpoint) for checkpoint in pool.checkpoints.values()):
                found = ExactAdapters(pool)
                if not isinstance(pool.checkpoints[found.base.name], FoldedCheckpoint):
                    self._weighted = WeightedAdapters(found)
                    self._adapters, self._base = found, pool.info.linear({found.base.name: 1.0})
        except RecipeError:
            pass  # no adapters of one base

    def of(self, recipe: Recipe, plan: Plan) -> Departure | None:
        """What a recipe adds to which model; ``None`` where it is no such recipe, or no factors say what it adds."""
        common = _perturbed(recipe, self._pool)
        if common is not None:
            terms = self._noise(plan)
            return None if terms is None else Departure(common, terms)
        if self._adapters is None or self._weighted is None or self._base is None:
            return None
        terms = self._weighted.of(plan)
        if terms is None:
            try:
                terms = {name: Term(own, kind) for name, (own, kind) in self._adapters.of(plan).items()}
            except RecipeError:
                return None
        return Departure(self._base, terms)

    def _noise(self, plan: Plan) -> Terms | None:
        found: dict[str, Term] = {}
        self._places = self._places or Places(self._pool)
        for entry in plan.slices:
            for part in entry.parts:
                if part.method != NOISE:
                    continue
                for index in part.tensors:
                    factors = part_noise(self._pool, part, index, entry.like[index])
                    if factors is None:
                        continue
                    name = entry.tensors[index]
                    if name not in self._place:
                        self._place[name] = self._places.of(name)
                    place = self._place[name]
                    if not place.has_factors:  # tied to another, or one of several experts in one tensor
                        return None
                    found[place.module] = Term(factors, place.kind)
        return found


def part_noise(pool: Pool, part: Part, index: int, like: str) -> Factors | None:
    """What `low_rank_noise` adds to one tensor of a slice; ``None`` where it leaves it alone."""
    source = part.sources[0]
    key = mask_key(part.seed, source.identity, source.tensors[index])
    return noise_factors(pool.layout.shapes[like], **dict(part.values), key=key)


def _perturbed(recipe: Recipe, pool: Pool) -> Recipe | None:
    """The model that a recipe perturbs: every slice is perturbed, or taken as it is; ``None`` where it is another."""
    methods = {entry.method for entry in recipe.slices}
    names = {source.model for entry in recipe.slices for source in entry.inputs}
    if NOISE not in methods or not methods <= {NOISE, "passthrough"} or len(names) != 1:
        return None
    own = (entry.scale is None and entry.base is None and entry.inputs[0].layer is None for entry in recipe.slices)
    if not all(own):
        return None
    (name,) = names
    stages = dict(recipe.intermediates)
    return replace(stages[name], dtype=recipe.dtype) if name in stages else pool.info.linear({name: 1.0})
