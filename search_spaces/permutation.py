"""The permutation space: at every depth, which models' layers the path takes, in which order and how often.

The depth-wise integration space of "Fine, I'll Merge It Myself" (AutoMerge, arXiv 2502.04030). Where the data flow
space takes the models one after another, this one goes through all of them layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from search_spaces.gentle import gentle_scales, gentle_takes
from search_spaces.layer_scaling import scale_gene
from search_spaces.path_pool import ALONE, KEY, Alone, PathPool
from search_spaces.paths import Limits, Step, check_counts, check_head, path_slices


@dataclass(frozen=True)
class _Depth:
    """A run of layers that are permuted with each other, and where its genes stand.

    Attributes:
        first, count: its layers.
        candidates: pairs of model and layer, layer by layer.
        takes: number of the first of the genes that say how often, one for every candidate.
        order: number of the first of the genes that say in which order, one fewer than candidates.
        scale: number of the scale gene, ``None`` without one.
    """

    first: int
    count: int
    candidates: tuple[tuple[str, int], ...]
    takes: int
    order: int
    scale: int | None


class PermutationSpace:
    """Paths that go through all models layer by layer; implements `protocols.SearchSpace`.

    The layers between the fixed ends are cut into runs of `group`. The candidates of a run are its layers of every
    model. A gene for each, ``layers.3/math``, says how often the path takes it: true or false, or a number up to
    `repeats`. Genes ``layers.3/order.0`` and so on say in which order: each picks one of the candidates that are
    left. The path goes through the candidates in this order as often as any of them is taken, at the n-th time
    through those that are taken n times or more. A run of which nothing is taken keeps the input model's layers, or
    is left out when `keep` is false.

    Args:
        pool: what there is.
        methods: declarations of merge methods; a path merges nothing.
        winner, models, input_model, head, fixed: as for `data_flow.DataFlowSpace`.
        group: layers that are permuted with each other.
        repeats: how often a layer can be taken.
        keep: whether a run of which nothing is taken keeps the input model's layers.
        scales: ``layer``, a scale on the way into every run (``layers.3/scale``), or ``none``.
        scale_range, negative_scales, min_layers, max_layers, max_uses, max_parameters: as for `DataFlowSpace`.
        gentle_start: likewise. Genes of the order have no spread: where one candidate is taken it means nothing.

    Raises:
        ConfigError: anything of the above that cannot be, or models of different depths; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        winner: Recipe | Alone | None = ALONE,
        models: list[str] | None = None,
        input_model: str | None = None,
        head: str | None = None,
        group: int = 1,
        repeats: int = 1,
        keep: bool = True,
        fixed: int = 1,
        scales: str = "layer",
        scale_range: dict[str, Any] | None = None,
        negative_scales: bool = False,
        min_layers: int | None = None,
        max_layers: int | None = None,
        max_uses: int | None = None,
        max_parameters: float | None = None,
        gentle_start: bool = False,
    ) -> None:
        self._pool = PathPool.of(pool, models, winner)
        depths = {name: self._pool.depth(name) for name in self._pool.models}
        self._input = self._pool.model(input_model, "input_model")
        self._head = check_head(self._pool, head, self._input)
        self._depth, self._fixed = self._pool.depth(self._input), fixed
        if len({*depths.values(), self._depth}) > 1:
            listed = ", ".join(f"{name} has {depth}" for name, depth in depths.items())
            raise ConfigError(
                f"{KEY} goes through models layer by layer and they differ in their number of layers: {listed}",
                "models of one depth",
                "take search_space=data_flow",
            )
        check_counts(repeats, 1, fixed, self._depth, self._input)
        if isinstance(group, bool) or not 1 <= group <= self._depth:
            raise ConfigError(f"{KEY}.group is {group}", f"1 to {self._depth}, the layers of {self._input}")
        self._limits = Limits.of(self._pool, min_layers, max_layers, max_uses, max_parameters)
        self._keep = keep
        make = scale_gene(scales, ("none", "layer"), scale_range, negative_scales, self._pool)
        genes: list[Gene] = []
        self._depths: list[_Depth] = []
        for first in range(fixed, self._depth - fixed, group):
            count = min(group, self._depth - fixed - first)
            name = f"layers.{first}" + (f"-{first + count - 1}" if count > 1 else "")
            candidates = tuple((m, layer) for layer in range(first, first + count) for m in self._pool.models)
            takes = len(genes)
            for model, layer in candidates:
                gene_name = f"{name}/{model}" + (f".{layer}" if count > 1 else "")
                own = model == self._input
                if repeats == 1:
                    genes.append(Gene(gene_name, "boolean", initial=own))
                else:
                    genes.append(Gene(gene_name, "integer", 0, repeats, int(own)))
            order = len(genes)
            last = len(candidates) - 1
            genes += [Gene(f"{name}/order.{place}", "integer", 0, last - place, 0) for place in range(last)]
            scale = len(genes) if scales != "none" and first > 0 else None
            genes += [make(f"{name}/scale")] if scale is not None else []
            self._depths.append(_Depth(first, count, candidates, takes, order, scale))
        self.starts_as_it_is = gentle_start
        if gentle_start:
            chosen = [place for d in self._depths for place in range(d.takes, d.takes + len(d.candidates))]
            scaled = [d.scale for d in self._depths if d.scale is not None]
            for places, gentle in ((chosen, gentle_takes), (scaled, gentle_scales)):
                for place, gene in zip(places, gentle([genes[place] for place in places]), strict=True):
                    genes[place] = gene
        self._spec = GenomeSpec(tuple(genes))

    @property
    def spec(self) -> GenomeSpec:
        """The genes, depth by depth."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe; depends on nothing but the genome and the construction.

        Raises:
            ConfigError: the genome is not one of this space (length, bounds, types).
            InfeasibleError: the path is empty or beyond the limits, or a scale cannot be.
        """
        self._spec.check(genome)
        steps = [Step(self._input, layer) for layer in range(self._fixed)]
        for depth in self._depths:
            layers = self._taken(depth, genome)
            input_scale = 1.0 if depth.scale is None else float(genome.values[depth.scale])
            steps += [Step(model, layer, 1.0 if place else input_scale) for place, (model, layer) in enumerate(layers)]
        steps += [Step(self._input, layer) for layer in range(self._depth - self._fixed, self._depth)]
        self._limits.check([(step.model, step.layer) for step in steps], self._pool)
        return self._pool.recipe(path_slices(steps, self._pool, self._input, self._head))

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the genes that the recipe depends on: no order of fewer than two, no scale of none."""
        idle: set[int] = set()
        for depth in self._depths:
            places = range(depth.takes, depth.takes + len(depth.candidates))
            if sum(int(genome.values[place]) > 0 for place in places) < 2:
                idle.update(range(depth.order, depth.order + len(depth.candidates) - 1))
            if depth.scale is not None and not self._taken(depth, genome):
                idle.add(depth.scale)
        return frozenset(gene.name for place, gene in enumerate(self._spec) if place not in idle)

    def _taken(self, depth: _Depth, genome: Genome) -> list[tuple[str, int]]:
        left = list(range(len(depth.candidates)))
        order = [left.pop(int(genome.values[depth.order + place])) for place in range(len(left) - 1)] + left
        times = [int(genome.values[depth.takes + candidate]) for candidate in range(len(depth.candidates))]
        taken = [depth.candidates[c] for n in range(1, max(times) + 1) for c in order if times[c] >= n]
        if not taken and self._keep:
            return [(self._input, layer) for layer in range(depth.first, depth.first + depth.count)]
        return taken
