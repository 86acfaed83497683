"""Starts and step sizes of genes from the weights of the pool: ``strategy.prior=differences``."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError, InfeasibleError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.protocols import SearchSpace
from evomerge.recipes.differences import Differences
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId, SliceRecipe
from evomerge.recipes.switches import merged_recipe

if TYPE_CHECKING:
    from evomerge.models.pool import Pool

_LOG = logging.getLogger(__name__)
DIFFERENCES, AUTO = "differences", "auto"
PRIORS = (DIFFERENCES, AUTO)
NARROWEST, WIDEST = 1 / 3, 3.0
"""Of a step size, in units of the strategy's own."""
LARGEST = 0.5  # of a gene's range

_WEIGHT = "weight"
_MEANS_NOTHING = "a prior is of genes that weight models' differences from a base"
_DO = "leave strategy.prior out, or choose task_arithmetic, ties, dare_ties and the like"


@dataclass(frozen=True)
class Weighting:
    """A gene that weights one model's task vector.

    Attributes:
        model: which one.
        slopes: slices, and what the weight there changes by when the gene changes by 1.
        others: the models that are weighted in the same slices.
        summed: whether the weights are used as they are, not divided by their sum.
    """

    model: str
    slopes: tuple[tuple[SliceId, float], ...]
    others: frozenset[str]
    summed: bool


def weighting_of(space: SearchSpace, number: int) -> Weighting | None:
    """What a gene weights, seen from the recipes of its lowest and its highest value; ``None`` where it is no weight.

    It is one where the recipes differ in nothing but the weights of one model, in slices that have a base.
    """
    gene, values = space.spec.genes[number], list(space.spec.initial.values)
    if gene.kind != "continuous" or gene.low == gene.high:
        return None
    recipes: list[Recipe] = []
    for value in (gene.low, gene.high):
        values[number] = gene.snap(value)
        try:
            recipes.append(merged_recipe(space.decode(space.spec.genome(values))))
        except InfeasibleError:  # weights to be divided by their sum, which is zero
            return None
    if len({len(recipe.slices) for recipe in recipes}) > 1:
        return None
    moved = [pair for pair in zip(recipes[0].slices, recipes[1].slices, strict=True) if pair[0] != pair[1]]
    changes = [_change(first, second) for first, second in moved]
    found = [change for change in changes if change is not None]
    if not found or len(found) < len(changes) or len({model for model, _ in found}) > 1:
        return None
    span = float(gene.snap(gene.high)) - float(gene.snap(gene.low))
    slopes = tuple((first.slice, change / span) for (first, _), (_, change) in zip(moved, found, strict=True))
    model = found[0][0]
    others = frozenset(entry.model for first, _ in moved for entry in first.inputs) - {model}
    summed = all(dict(first.parameters).get("normalize", False) is False for first, _ in moved)
    return Weighting(model, slopes, others, summed)


def _change(first: SliceRecipe, second: SliceRecipe) -> tuple[str, float] | None:
    """The model whose weight alone differs in two recipes of a slice, and by how much."""
    if first.base is None or len(first.inputs) != len(second.inputs):
        return None
    if replace(first, inputs=()) != replace(second, inputs=()):
        return None
    differing = [pair for pair in zip(first.inputs, second.inputs, strict=True) if pair[0] != pair[1]]
    if len(differing) != 1:
        return None
    before, after = differing[0]
    one, two = dict(before.parameters), dict(after.parameters)
    start, end = one.pop(_WEIGHT, None), two.pop(_WEIGHT, None)
    if one != two or replace(before, parameters=()) != replace(after, parameters=()):
        return None
    if not isinstance(start, int | float) or not isinstance(end, int | float):
        return None
    return before.model, float(end) - float(start)


def weightings(space: SearchSpace) -> dict[int, Weighting]:
    """What the genes weight, by number; without those that weight nothing.

    Raises:
        ConfigError: none does.
    """
    every = {number: weighting_of(space, number) for number in range(len(space.spec))}
    found = {number: own for number, own in every.items() if own is not None}
    if not found:
        raise ConfigError("strategy.prior is differences, and no gene weights a task vector", _MEANS_NOTHING, _DO)
    return found


def prior_genes(
    genes: Sequence[Gene], found: Mapping[int, Weighting], known: Differences, sigma: float
) -> tuple[dict[int, Gene], str]:
    """The genes that the rule changes, by number, and what it does in a line.

    With ``r`` the shift of a gene (`Differences.shift`) times its range, and ``g`` the geometric mean of all ``r``, a
    gene's first standard deviation is ``sigma g / r`` of its range, between a third and three times `sigma` and at
    most half of the range: first candidates change every slice by the same share of its norm, on average by as much as
    without the prior. Where weights are summed as they are, a gene's start is divided by ``1 + sum(max(0, cos))`` over
    the other models' task vectors in its slices: what several have in common counts once.

    Args:
        genes: of the search space.
        found: what they weight.
        known: of its pool.
        sigma: the strategy's own standard deviation, in units of a gene's range; genes that have a spread keep it as
            their own.

    Raises:
        ConfigError: no gene moves anything: the models are those of the base.
    """
    ranged = {n: known.shift(own.model, own.slopes) * (genes[n].high - genes[n].low) for n, own in found.items()}
    moving = {number: shift for number, shift in ranged.items() if 0 < shift < math.inf}
    if not moving:
        raise ConfigError("strategy.prior is differences, and all task vectors are zero", _MEANS_NOTHING, _DO)
    mean = math.exp(sum(map(math.log, moving.values())) / len(moving))
    changed: dict[int, Gene] = {}
    for number, shift in moving.items():
        gene, own = genes[number], found[number]
        width = (gene.spread or sigma) * min(max(mean / shift, NARROWEST), WIDEST)
        start = float(gene.start)
        if own.summed and start > 0:
            cosines = known.cosines(own.model, own.slopes)
            start /= 1 + sum(max(0.0, cosine) for model, cosine in cosines.items() if model in own.others)
        changed[number] = replace(gene, spread=min(width, LARGEST), initial=gene.snap(start))
    return changed, _summary(changed, len(genes))


def _summary(changed: Mapping[int, Gene], genes: int) -> str:
    widths = sorted((float(gene.spread or 0), gene.name) for gene in changed.values())
    starts = sorted((float(gene.start), gene.name) for gene in changed.values())
    parts = [
        f"{what} {low[0]:.3g} ({low[1]}) to {high[0]:.3g} ({high[1]})"
        for what, (low, *_, high) in (("steps", [*widths, widths[-1]]), ("starts", [*starts, starts[-1]]))
    ]
    return f"differences: {len(changed)} of {genes} genes; {'; '.join(parts)}"


class PriorSpace:
    """A search space whose genes have other starts and step sizes; implements `protocols.SearchSpace`.

    Genomes and their recipes are those of the space itself.

    Args:
        space: whose genes have names.
        genes: those that are changed, by number.
        prior: what was changed, in a line.

    Attributes:
        spec: the genes.
        prior: as given.
    """

    def __init__(self, space: SearchSpace, genes: Mapping[int, Gene], prior: str) -> None:
        self._space, self.prior = space, prior
        self.spec = GenomeSpec(tuple(genes.get(number, gene) for number, gene in enumerate(space.spec)))

    def __getattr__(self, name: str) -> Any:
        if name == "_space":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self._space, name)

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe, as without the prior."""
        return self._space.decode(genome)


def check_prior(prior: Any, key: str) -> str | None:
    """The name of a prior as the configuration gives it; ``None`` for none.

    Raises:
        ConfigError: there is no such prior.
    """
    if prior is None or prior in PRIORS:
        return None if prior is None else str(prior)
    raise ConfigError(f"{key}.prior is {prior!r}", f"{nearest(str(prior), PRIORS)}, or null")


def with_prior(space: SearchSpace, measure: Callable[[], Differences] | None, sigma: float) -> PriorSpace:
    """The space with starts and step sizes from the pool's differences.

    Args:
        space: of the search.
        measure: reads the pool; ``None`` where there is none.
        sigma: as for `prior_genes`.

    Raises:
        ConfigError: genomes or a pool of which the prior says nothing.
    """
    if measure is None or type(space.spec) is not GenomeSpec:
        what = "genomes are the models" if measure is None else "genomes are merges of merges"
        raise ConfigError(f"strategy.prior is differences, and {what}", _MEANS_NOTHING, _DO)
    found = weightings(space)  # before the models are read
    genes, line = prior_genes(space.spec.genes, found, measure(), sigma)
    return PriorSpace(space, genes, line)


def measured(pool: Pool) -> Differences:
    """The pool's differences; where its models have to be read, a line on standard error says how far that is.

    Raises:
        PoolError: as `differences_of`.
    """
    from rich.progress import Progress

    from evomerge.models.task_vectors import differences_of
    from evomerge.report.plain_console import errors

    with Progress(console=errors, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("reading the models for strategy.prior", total=None, visible=False)

        def watch(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)
            if done == total or done % max(total // 10, 1) == 0:
                _LOG.info("strategy.prior: %d of %d slices read", done, total)

        return differences_of(pool, watch)


def remembered(pool: Pool) -> Differences | None:
    """The pool's differences; ``None`` where its models would have to be read."""
    from evomerge.models.task_vectors import known_differences

    return known_differences(pool)


def first_deviation(node: Mapping[str, Any]) -> float:
    """How far from the start a strategy's first candidates are where genes do not say, in units of a gene's range."""
    for name in ("sigma0", "spread"):
        value = node.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
            return float(value)
    return 0.25


def priors_of(spaces: Sequence[SearchSpace]) -> list[str]:
    """What the priors of a run's phases have changed, a line each."""
    return [space.prior for space in spaces if isinstance(space, PriorSpace)]
