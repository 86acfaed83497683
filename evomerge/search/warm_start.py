"""A warm start: what named recipes and earlier runs teach a search before it proposes anything itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Evaluation, Items
from evomerge.errors import ConfigError, EvomergeError, InfeasibleError, RecipeError
from evomerge.genomes.encoding import GenomeLog
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import evaluation_of, read_ledger
from evomerge.run.ledger_file import Event
from evomerge.run.remains import require_ledger

if TYPE_CHECKING:
    pass

KEY = "search.warm_start"


@dataclass(frozen=True)
class WarmStart:
    """What one phase begins with.

    Attributes:
        evaluated: genomes with evaluations that count here as they are, and where each comes from.
        to_reevaluate: genomes to evaluate before any other, the most promising first.
        x0: the most promising genome of all, ``None`` when there is none.
        best: genomes of earlier runs with a score, the best first: of those whose scores count here, or else of the
            others, whose fitness was another one.
    """

    evaluated: Sequence[tuple[Genome, Evaluation, str]] = ()
    to_reevaluate: Sequence[Genome] = ()
    x0: Genome | None = None
    best: Sequence[Genome] = ()

    def started(self, spec: GenomeSpec) -> GenomeSpec:
        """The genes with `x0` as their start: there begin strategies that start from one point."""
        if self.x0 is None or type(spec) is not GenomeSpec:
            return spec
        pairs = zip(spec, self.x0.values, strict=True)
        return GenomeSpec(tuple(replace(gene, initial=value) for gene, value in pairs))


@dataclass(frozen=True)
class _Known:
    """A genome of an earlier run and what came of it."""

    genome: Genome
    recipe_hash: str | None
    told: Event
    genes: tuple[str, ...]
    run: RunFolder


@dataclass
class WarmStartSources:
    """Reads the sources once and says for each phase what fits it.

    A genome of an earlier run fits when its genes have the same names, but for those that the space leaves out since
    their slices are equal in all models (`left_out`), which runs of before had. It is told without being evaluated
    when it means the same recipe here and the fitness has the same fingerprint; otherwise it is evaluated first, if it
    is one of the best. Recipes are encoded by the search space, when that has a method ``encode(recipe) -> Genome``.

    Args:
        sources: run folders and recipe files.
        again: how many of the earlier runs' genomes are evaluated again, at most.
        objectives: the first one ranks genomes that are to be evaluated again.
    """

    sources: Sequence[str]
    again: int
    objectives: Sequence[Objective]
    _known: list[_Known] = field(default_factory=list, init=False)
    _prints: dict[Path, str | None] = field(default_factory=dict, init=False)
    _recipes: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.again < 0:
            raise ConfigError(f"{KEY}_evaluations is {self.again}", "0 or more")
        for source in self.sources:
            path = Path(source)
            if path.is_dir():
                self._read_run(RunFolder.open(path))
            elif path.is_file():
                self._recipes[source] = read_recipe_file(path, source)
            else:
                raise ConfigError(f"{KEY} names {source!r}", "a run folder or a recipe file that exists")

    def check(self, spaces: Sequence[SearchSpace]) -> None:
        """Raise `ConfigError` when a source fits none of the phases' search spaces."""
        for source, recipe in self._recipes.items():
            self._encode(spaces[0], source, recipe)
        for source in self.sources:
            if source in self._recipes:
                continue
            found = {known.genes for known in self._known if known.run.path == Path(source)}
            if not any(_places(genes, space) is not None for genes in found for space in spaces):
                genes = next(iter(found), ())
                told = f"has {len(genes)} genes: {', '.join(genes[:3])}, ..." if genes else "has no evaluated genomes"
                wanted = tuple(gene.name for gene in spaces[0].spec)
                raise ConfigError(
                    f"{KEY}: run {source} {told}",
                    f"this search space has {len(wanted)}: {', '.join(wanted[:3])}, ...",
                    "choose the search space of that run, or leave it out",
                )

    def __call__(self, space: SearchSpace, fingerprint: str, first: bool = True) -> WarmStart:
        """What a phase of this space begins with.

        Args:
            fingerprint: of the fitness.
            first: whether it is the first phase, which the recipes are for.
        """
        places = {genes: _places(genes, space) for genes in {known.genes for known in self._known}}
        told: list[tuple[Genome, Evaluation, str]] = []
        stale: list[tuple[float, Genome]] = []
        for known in self._known:
            kept = places[known.genes]
            if kept is None:
                continue
            genome, same = self._decode(space, known, kept)
            if genome is None:
                continue
            evaluation = evaluation_of(known.told)
            if same and self._prints[known.run.path] == fingerprint:
                told.append(
                    (genome, replace(evaluation, items=_items(known)), f"{known.run.path}#{evaluation.candidate}")
                )
            else:
                stale.append((self._gain(evaluation), genome))
        stale.sort(key=lambda pair: -pair[0])
        again = list(dict.fromkeys(genome for _, genome in stale))[: self.again]
        if first:
            again = [self._encode(space, source, recipe) for source, recipe in self._recipes.items()] + again
        if getattr(space, "starts_as_it_is", False) and not told and not again:
            again = [space.spec.initial]
        best = max(told, key=lambda entry: self._gain(entry[1]), default=None)
        ranked = sorted(((self._gain(evaluation), genome) for genome, evaluation, _ in told), key=lambda pair: -pair[0])
        good = [genome for gain, genome in ranked or stale if gain > float("-inf")]
        return WarmStart(told, again, again[0] if again else best[0] if best else None, good)

    def _read_run(self, run: RunFolder) -> None:
        genes: tuple[str, ...] = ()
        asked: dict[int, tuple[Genome, str | None]] = {}
        log, events = GenomeLog(), 0
        for event in read_ledger(run):
            kind, events = event["event"], events + 1
            if kind == "started":
                self._prints[run.path] = event.get("fitness")
            if kind in ("started", "phase") and isinstance(event.get("genes"), list):
                genes = tuple(map(str, event["genes"]))
            elif kind == "asked" and event.get("split") == "search" and event.get("genome") is not None:
                genome = log.read(event["candidate"], event["genome"])
                if genome is not None:
                    asked[event["candidate"]] = (genome, event.get("recipe_hash"))
            elif kind == "told" and event.get("split") == "search" and event["candidate"] in asked:
                self._known.append(_Known(*asked.pop(event["candidate"]), event, genes, run))
        require_ledger(run, events)

    def _decode(self, space: SearchSpace, known: _Known, kept: Sequence[int]) -> tuple[Genome | None, bool]:
        """The genome here, of the values at places `kept`, and whether it means the recipe that it meant there."""
        try:
            plain = type(known.genome) is Genome
            genome = space.spec.genome([known.genome.values[place] for place in kept]) if plain else known.genome
            recipe: Recipe | None = space.decode(genome)  # none where genomes are the models
            return genome, (recipe.hash if recipe is not None else None) == known.recipe_hash
        except (InfeasibleError, ConfigError, TypeError):
            return None, False

    def _encode(self, space: SearchSpace, source: str, recipe: Any) -> Genome:
        encode = getattr(space, "encode", None)
        if encode is None:
            raise ConfigError(
                f"{KEY}: recipe {source}",
                f"{type(space).__name__} cannot turn recipes into genomes",
                "warm-start from a run, or from a recipe with a search space that has `encode`",
            )
        try:
            genome: Genome = encode(recipe)
        except (InfeasibleError, RecipeError, ConfigError) as error:
            raise ConfigError(f"{KEY}: recipe {source} is not in the search space", str(error)) from error
        return genome

    def _gain(self, evaluation: Evaluation) -> float:
        objective = self.objectives[0]
        value = evaluation.objectives.get(objective.name)
        return objective.gain(value) if evaluation.ok and value is not None else float("-inf")


def _places(genes: tuple[str, ...], space: SearchSpace) -> Sequence[int] | None:
    """Where in a genome of these genes the space's own are; ``None`` where it is none of this space."""
    wanted = tuple(gene.name for gene in space.spec)
    if genes == wanted:
        return range(len(genes))
    left_out = set(getattr(space, "left_out", ()))
    kept = [place for place, name in enumerate(genes) if name not in left_out]
    return kept if tuple(genes[place] for place in kept) == wanted else None


def _items(known: _Known) -> Items:
    if known.told.get("items") is None:
        return {}
    try:
        return read_items(known.run, int(known.told["candidate"]), digest=known.told.get("items_hash"))
    except EvomergeError:  # the scores count without their items
        return {}


def no_warm_start(space: SearchSpace, number: int) -> WarmStart:
    """A warm start from nothing."""
    return WarmStart()
