"""Builds single parts of a run from their nodes of the configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evomerge.config.construct import TARGET, arguments_of, build, locate, to_builtin
from evomerge.config.groups import asynchronous_strategies, takes_asynchronous
from evomerge.config.placing import placed
from evomerge.config.schema import Config
from evomerge.config.trust import leaves
from evomerge.errors import ConfigError
from evomerge.evaluation.references import references
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective, Scalarisation
from evomerge.protocols import Fitness, SearchSpace, Strategy
from evomerge.recipes.differences import Differences
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.search.phases import Baselines, Phase, split_budget
from evomerge.session.bounded_space import BoundedSpace
from evomerge.session.engines import check_engine, engine_of
from evomerge.session.phase_entries import check_phases, check_preferences
from evomerge.session.pools import check_scored
from evomerge.session.prior import DIFFERENCES, check_prior, first_deviation, with_prior
from evomerge.session.refining import check_refined_objectives, refined
from evomerge.strategies.bases.penalised import Penalised, check_single
from evomerge.strategies.bases.scalarised import SCALAR, Scalarised

if TYPE_CHECKING:
    from evomerge.models.pool import Pool

_LARGEST = 1_000_000
"""Of any whole number of a strategy: sizes of populations, archives, batches."""


def fitness_from_config(config: Config, key: str, *, exact: bool = False, files: bool = True) -> Fitness:
    """Build the ``fitness`` or the ``held_out`` node: its arguments and files are checked, `check_fitnesses` does more.

    Args:
        config: of the experiment.
        key: which of them.
        files: whether the files that it names are there by now.
        exact: whether ``forwards: auto`` and ``generation: auto`` mean what the stock tool does, also on the search's
            items.
    """
    node, engine = getattr(config, key), engine_of(config)
    exact = exact or not engine.holds_modules
    if node is None:
        raise ConfigError(
            f"{key} is not set", "a fitness is needed", f"choose one with {key}=lm_eval and {key}.tasks=[...]"
        )
    node = _with_modes(to_builtin(node), shared=not exact and key != "held_out")
    fitness = cast(Fitness, build(node, key))
    with placed(key, arguments_of(fitness)):
        check_engine(engine, fitness, key)
    check_files: Callable[[], None] | None = getattr(fitness, "check_files", None)
    if check_files is not None and files:
        with placed(key, arguments_of(fitness)):
            check_files()
    return fitness


def _with_modes(node: Any, *, shared: bool) -> Any:
    """The node of a fitness, or of several in `parts`, where ``auto`` is what it means and keys of old are gone."""
    if not isinstance(node, dict):
        return node
    made = dict(node)
    if made.get("forwards") == "auto":
        made["forwards"] = "shared" if shared else "exact"
    ours = made.get(TARGET) == "fitness.lm_eval_tasks.LmEvalFitness"
    if ours and made.get("generation") == "auto":
        made["generation"] = "continuous" if shared and made.get("forwards") == "shared" else "stock"
    if ours and made.get("block_size", 0) is None:
        del made["block_size"]  # of earlier versions
    if isinstance(made.get("parts"), dict):
        made["parts"] = {name: _with_modes(part, shared=shared) for name, part in made["parts"].items()}
    return made


def check_fitnesses(
    fitness: Fitness, held_out: Fitness | None = None, pool: Pool | None = None, *, key: str = "fitness"
) -> None:
    """Load what the fitnesses score by, and check what they ask of the pool's tokenizer and classes.

    Args:
        fitness, held_out: built by `fitness_from_config`.
        pool: ``None`` where no tokenizer is looked at.
        key: of `fitness`, for messages.

    Raises:
        FitnessError: tasks, metrics or items that cannot be scored; a tokenizer without what they ask for; a model to
            compare with that the pool does not have.
        PoolError: the tokenizer cannot be loaded.
    """
    from evomerge.models.tokenizers import load_tokenizer

    for node, part in ((key, fitness), ("held_out", held_out)):
        if part is not None:
            with placed(node, arguments_of(part)):
                if pool is not None:
                    check_scored(pool, part)  # what else is said of models of another kind misleads
                    references(part, pool.info)
                part.check()
                if pool is not None:
                    load = functools.partial(load_tokenizer, pool.tokenizer_folder, pool.trust_remote_code)
                    _ask(part, "check_tokenizer", load)
                    _ask(part, "check_model", pool.config, str(pool.folder(pool.info.config_from)))
                    check_labels(pool, part)
                    _ask(part, "check_encoder", pool.encoder_folder, pool.config)


def _ask(fitness: Fitness, check: str, *given: Any) -> None:
    """Call a check that a fitness may have."""
    if hasattr(fitness, check):
        getattr(fitness, check)(*given)


def check_labels(pool: Pool, fitness: Fitness) -> None:
    """Let a fitness with labelled items check them against the labels of the pool's heads.

    Raises:
        FitnessError: labels that a head does not have.
    """

    def labels(head: str) -> Mapping[Any, Any]:
        own = pool.heads.configs.get(head) if pool.heads is not None else None
        return getattr(own or pool.config, "id2label", None) or {}

    _ask(fitness, "check_labels", labels)


def phase_node(config: Config, phase: str, part: str) -> tuple[Any, str]:
    """The node of a phase's search space or strategy, and its key: the phase's own, or that of all."""
    own = config.phases[phase] if config.phases else None
    node = own.get(part) if own is not None else None
    return (getattr(config, part), part) if node is None else (node, f"phases.{phase}.{part}")


def without_bounds(node: Any) -> tuple[Any, Any]:
    """The node of a search space without its key ``bounds``, which is that of every space, and what that says."""
    content = to_builtin(node)
    return content, content.pop("bounds", None) if isinstance(content, dict) else None


def without_prior(node: Any, key: str) -> tuple[Any, str | None]:
    """The node of a strategy without its key ``prior``, which is that of every strategy, and what that says.

    Raises:
        ConfigError: there is no such prior.
    """
    content = to_builtin(node)
    return content, check_prior(content.pop("prior", None), key) if isinstance(content, dict) else None


def space_from_node(node: Any, key: str, info: PoolInfo | None, **injected: Any) -> SearchSpace:
    """The search space that a node describes, within the bounds that it gives genes.

    Args:
        node: with a `_target_`; its key ``bounds`` is that of every search space.
        key: where it stands in the configuration.
        info: of the pool.
        injected: what else the space is given by the program.
    """
    from evomerge.merge.methods import specs

    content, bounds = without_bounds(node)
    space = cast(SearchSpace, build(content, key, info, specs(), **injected))
    return BoundedSpace(space, bounds, f"{key}.bounds") if bounds or bounds == 0 else space


@dataclass(frozen=True)
class PhaseNode:
    """A phase before its strategy: that needs the objectives, which the fitness knows.

    Attributes:
        name, evaluations, takes_winner: as of `Phase`.
        node, key: of its search space in the configuration.
        info: of the pool, ``None`` where genomes are the models.
        deviation: that of its strategy's first candidates, in units of a gene's range, where the strategy has a prior.
        measure: what reads the pool's differences for it.
        preferences: those of the phase as its entry has them; ``None`` where it has none.
    """

    name: str
    evaluations: int
    node: Any
    key: str
    info: PoolInfo | None
    takes_winner: bool
    deviation: float | None = None
    measure: Callable[[], Differences] | None = None
    preferences: Any = None

    @property
    def evaluations_each(self) -> int:
        """The least that is searched at a time: an equal part for each preference, where a number says how many at
        most.
        """
        wanted = self.preferences
        count = len(wanted) if isinstance(wanted, list) else wanted if isinstance(wanted, int) else 1
        return max(1, self.evaluations // max(1, count))

    def space(self, winner: Recipe | None) -> SearchSpace:
        """The search space; `winner` is that of the phase before, for one that takes it."""
        space = self.space_of(self.node, winner)
        return space if self.deviation is None else with_prior(space, self.measure, self.deviation)

    def space_of(self, node: Any, winner: Recipe | None = None) -> SearchSpace:
        """The search space that another node describes, without a prior."""
        return space_from_node(node, self.key, self.info, **({"winner": winner} if self.takes_winner else {}))

    def phase(self, config: Config, objectives: Sequence[Objective]) -> Phase:
        """The phase, for these objectives."""
        preferences = check_preferences(self.preferences, self.name, self.evaluations, objectives)
        seen = (SCALAR,) if preferences else objectives
        strategy = functools.partial(strategy_from_config, config, self.name, seen)
        return Phase(self.name, self.evaluations, self.space, strategy, self.takes_winner, preferences)


def phase_nodes(
    config: Config, info: PoolInfo | None, measure: Callable[[], Differences] | None = None
) -> list[PhaseNode]:
    """The phases of the configuration, in order; their spaces are checked when they are made."""
    entries = check_phases(config) or {"search": {}}
    budget = split_budget(
        config.search.evaluations, {str(name): entry.get("evaluations") for name, entry in entries.items()}
    )
    phases = []
    for number, name in enumerate(budget):
        node, key = phase_node(config, name, "search_space")
        takes = number > 0 and _takes_winner(node, key)
        strategy, prior = without_prior(*phase_node(config, name, "strategy"))
        deviation = first_deviation(strategy) if prior == DIFFERENCES else None  # others are settled later
        preferences = entries[name].get("preferences")
        phases.append(PhaseNode(name, budget[name], node, key, info, takes, deviation, measure, preferences))
    return phases


def _takes_winner(node: Any, key: str) -> bool:
    target = (to_builtin(node) or {}).get(TARGET) if isinstance(to_builtin(node), Mapping) else None
    return target is not None and "winner" in inspect.signature(locate(str(target), f"{key}.{TARGET}")).parameters


def strategy_from_config(
    config: Config, phase: str, objectives: Sequence[Objective], spec: GenomeSpec, baselines: Baselines, place: int = 0
) -> Strategy:
    """A phase's strategy for these genes, shown one number instead of the objectives when the user asks for that.

    Args:
        place: of a phase that is searched for several preferences, for which of them: each has a seed of its own.
    """
    node, key = phase_node(config, phase, "strategy")
    node, _ = without_prior(node, key)
    for name, value in leaves(to_builtin(node), key):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
            raise ConfigError(f"{name} is {value}", f"at most {_LARGEST:,}: populations of that size find no memory")
    more = {} if config.search.ordered else _as_they_arrive(node, key)
    settings = config.search
    if settings.scalarise is None or len(objectives) == 1:
        strategy = cast(Strategy, build(node, key, spec, tuple(objectives), seed=settings.seed + place, **more))
        if not settings.penalty:
            return refined(config, strategy, spec, tuple(objectives), settings.seed + place)
        check_single(objectives)
        return Penalised(strategy, spec, objectives[0], settings.penalty)
    check_single(objectives if settings.penalty else ())
    check_refined_objectives(config, objectives)
    scalarisation = Scalarisation.of(objectives, settings.scalarise, settings.weights, baselines.values())
    return Scalarised(build(node, key, spec, (SCALAR,), seed=settings.seed, **more), scalarisation)


def _as_they_arrive(node: Any, key: str) -> dict[str, bool]:
    """What tells a strategy that could wait for its generation not to, unless its node says."""
    content = to_builtin(node)
    if not isinstance(content, Mapping) or TARGET not in content or "asynchronous" in content:
        return {}
    return {"asynchronous": True} if takes_asynchronous(locate(str(content[TARGET]), f"{key}.{TARGET}")) else {}


def check_asynchronous(config: Config, phase: str, strategy: Strategy) -> None:
    """`ConfigError` for a strategy that waits for its generation in a search that is not ordered."""
    if config.search.ordered or getattr(strategy, "asynchronous", False):
        return
    inner = getattr(strategy, "inner", strategy)
    raise ConfigError(
        f"search.ordered is false and {phase_node(config, phase, 'strategy')[1]} is {type(inner).__name__}",
        "it proposes a generation and waits until all of it has been told",
        f"set search.ordered=true, or choose strategy={', '.join(asynchronous_strategies())}",
    )
