"""Builds the parts of a run from its configuration, checking every key before anything is loaded."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from evomerge.best_folder import BestFolder
from evomerge.candidate import Split
from evomerge.checkpoint import Checkpoints, check_intervals
from evomerge.config.construct import TARGET, build, check_arguments, locate, plain
from evomerge.config.schema import Config, to_yaml
from evomerge.errors import ConfigError, nearest
from evomerge.evaluation.building import ShippedBuilder
from evomerge.evaluation.caching import CacheSettings
from evomerge.evaluation.worker import Worker, WorkerBuilder
from evomerge.fork import ForkedEvaluator, Source
from evomerge.genomes.genome import GenomeSpec
from evomerge.incumbent import Incumbent, check_choice
from evomerge.interrupts import Interrupts
from evomerge.item_texts import write_texts
from evomerge.ledger import Ledger, RunFolder
from evomerge.merge.methods import specs
from evomerge.models.pins import changed_since
from evomerge.models.pool import Pool, open_pool
from evomerge.objectives import SCALARISATIONS, Objective, Scalarisation
from evomerge.observers import Observer, Observers
from evomerge.phases import Baselines, Phase, split_budget
from evomerge.protocols import Evaluator, Fitness, SearchSpace, Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef
from evomerge.replay import ContinuedLedger, RecordedEvaluator
from evomerge.resume import Resumed, library_versions
from evomerge.search import GaveUpError, Keeper, Search
from evomerge.search_state import StateSaver, begin
from evomerge.strategies.scalarised import SCALAR, Scalarised
from evomerge.trackers.background import tracking
from evomerge.trackers.tracker import Tracker, trackers_from_config
from evomerge.utils.files import write_text_atomic
from evomerge.utils.imports import import_modules, own_files
from evomerge.warm_start import WarmStart

__all__ = ["TARGET", "Parts", "build", "build_parts", "check_arguments", "fitness_from_config", "remote_worker", "run"]

DISPLAYS = ("auto", "live", "plain", "quiet")


def pool_from_config(config: Config) -> Pool:
    """Open the pool, reading configs and headers only."""
    settings = config.pool
    return open_pool(
        dict(settings.models),
        base=settings.base,
        root=settings.root,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )


def fitness_from_config(config: Config, key: str) -> Fitness:
    """Build and check the ``fitness`` or the ``held_out`` node."""
    node = getattr(config, key)
    if node is None:
        raise ConfigError(
            f"{key} is not set", "a fitness is needed", f"choose one with {key}=lm_eval and {key}.tasks=[...]"
        )
    fitness = cast(Fitness, build(node, key))
    fitness.check()
    return fitness


@dataclass
class Parts:
    """Everything a run is made of, built and checked, with nothing large loaded yet.

    Attributes:
        pool: ``None`` where genomes are the models.
        space, strategy: of the first phase.
        phases: all of them.
        warm: what the search begins with.
        trackers: by name.
    """

    pool: Pool | None
    space: SearchSpace
    strategy: Strategy
    evaluator: Evaluator
    fitness: Fitness
    held_out: Fitness | None
    phases: Sequence[Phase]
    warm: WarmStart
    trackers: Sequence[tuple[str, Tracker]] = ()


def build_parts(config: Config) -> Parts:
    """Build and check every part; the order is that of cost, so that errors come early."""
    import_modules(config.imports, "imports")
    _check_search(config)
    trackers = trackers_from_config(config.trackers)
    target = str((plain(config.evaluator) or {}).get(TARGET, ""))
    direct = target.startswith("evomerge.evaluation.direct")
    pool = None if direct and not config.pool.models else pool_from_config(config)
    phases = phases_from_config(config, pool.info if pool is not None else None)
    spaces = [phase.space(None) for phase in phases]
    fitness = fitness_from_config(config, "fitness")
    held_out = fitness_from_config(config, "held_out") if config.held_out is not None else None
    objectives = tuple(fitness.objectives)
    check_choice(config.search.best, objectives, config.search.weights)
    strategies = []
    for phase, space in zip(phases, spaces, strict=True):
        strategy = _strategy(config, phase.name, objectives, space.spec, {})
        _check_asynchronous(config, phase.name, strategy)
        strategies.append(strategy)
    warm = WarmStart(
        [str(source) for source in config.search.warm_start], config.search.warm_start_evaluations, objectives
    )
    warm.check(spaces)
    phases = [_bound(config, phase, objectives) for phase in phases]
    fitnesses: dict[Split, Fitness] = {"search": fitness}
    if held_out is not None:
        fitnesses["held_out"] = held_out
    worker: WorkerBuilder | Mapping[Split, Fitness]
    if direct:
        worker = fitnesses
    elif target.startswith("evomerge.evaluation.local"):
        assert pool is not None
        worker = functools.partial(Worker, pool, fitnesses)
    else:  # travels to other processes, which build their own
        assert pool is not None
        remote = functools.partial(remote_worker, plain(config), dict(pool.info.refs), os.getcwd())
        worker = ShippedBuilder(remote, own_files([*config.imports, *_targets(config)]))
    evaluator = build(_with_cache(config), "evaluator", worker)
    return Parts(pool, spaces[0], strategies[0], evaluator, fitness, held_out, phases, warm, trackers)


def _with_cache(config: Config) -> Any:
    """The evaluator's node, where ``shared_cache: run`` is a folder in the run's."""
    node = plain(config.evaluator)
    if isinstance(node, dict) and node.get("shared_cache") == "run":
        node["shared_cache"] = str(Path(config.run_dir).absolute() / "slices")
    return node


def _check_search(config: Config) -> None:
    settings = config.search
    if settings.evaluations < 1:
        raise ConfigError(f"search.evaluations is {settings.evaluations}", "at least 1")
    if settings.in_flight is not None and settings.in_flight < 1:
        raise ConfigError(f"search.in_flight is {settings.in_flight}", "at least 1, or null")
    if settings.give_up is not None and settings.give_up < 1:
        raise ConfigError(f"search.give_up is {settings.give_up}", "at least 1, or null")
    check_intervals(settings.checkpoint.every, settings.checkpoint.evaluations, settings.checkpoint.keep)
    if settings.scalarise is not None and settings.scalarise not in SCALARISATIONS:
        raise ConfigError(f"search.scalarise is {settings.scalarise!r}", nearest(settings.scalarise, SCALARISATIONS))
    if settings.scalarise == "tchebycheff" and not settings.baselines:
        raise ConfigError(
            "search.scalarise is 'tchebycheff' and search.baselines is false",
            "the distance is measured in units of the baselines' range",
            "set search.baselines=true, or search.scalarise=weighted",
        )
    if config.display not in DISPLAYS:
        raise ConfigError(f"display is {config.display!r}", nearest(config.display, DISPLAYS))
    if settings.sync not in ("every", "interval"):
        raise ConfigError(f"search.sync is {settings.sync!r}", nearest(settings.sync, ("every", "interval")))


def _node(config: Config, phase: str, part: str) -> tuple[Any, str]:
    """The node of a phase's search space or strategy, and its key: the phase's own, or that of all."""
    own = config.phases[phase] if config.phases else None
    node = own.get(part) if own is not None else None
    return (getattr(config, part), part) if node is None else (node, f"phases.{phase}.{part}")


def phases_from_config(config: Config, info: PoolInfo | None) -> list[Phase]:
    """The phases, with spaces that are checked when they are made; strategies come with `_bound`."""
    entries = plain(config.phases) if config.phases else {"search": {}}
    if not isinstance(entries, Mapping):
        raise ConfigError(f"phases is {entries}", "a mapping of names to phases")
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"phases.{name} is {entry}", "a mapping with search_space, strategy and evaluations")
        for key in entry:
            if key not in ("search_space", "strategy", "evaluations"):
                allowed = nearest(str(key), ("search_space", "strategy", "evaluations"))
                raise ConfigError(f"phases.{name} has no key {key!r}", allowed)
    budget = split_budget(
        config.search.evaluations, {str(name): entry.get("evaluations") for name, entry in entries.items()}
    )
    phases = []
    for number, name in enumerate(budget):
        node, key = _node(config, name, "search_space")
        takes = number > 0 and _takes_winner(node, key)
        space = functools.partial(_space, node, key, info, takes)
        phases.append(Phase(name, budget[name], space, _unbound, takes))
    return phases


def _space(node: Any, key: str, info: PoolInfo | None, takes: bool, winner: Recipe | None) -> SearchSpace:
    return cast(SearchSpace, build(node, key, info, specs(), **({"winner": winner} if takes else {})))


def _takes_winner(node: Any, key: str) -> bool:
    target = (plain(node) or {}).get(TARGET) if isinstance(plain(node), Mapping) else None
    return target is not None and "winner" in inspect.signature(locate(str(target), f"{key}.{TARGET}")).parameters


def _unbound(spec: GenomeSpec, baselines: Baselines) -> Strategy:
    raise AssertionError("phases are given their strategies once the objectives are known")


def _bound(config: Config, phase: Phase, objectives: Sequence[Objective]) -> Phase:
    strategy = functools.partial(_strategy, config, phase.name, objectives)
    return Phase(phase.name, phase.evaluations, phase.space, strategy, phase.takes_winner)


def _strategy(
    config: Config, phase: str, objectives: Sequence[Objective], spec: GenomeSpec, baselines: Baselines
) -> Strategy:
    """A phase's strategy for these genes, shown one number instead of the objectives when the user asks for that."""
    node, key = _node(config, phase, "strategy")
    settings = config.search
    if settings.scalarise is None or len(objectives) == 1:
        return cast(Strategy, build(node, key, spec, tuple(objectives), seed=settings.seed))
    scalarisation = Scalarisation.of(objectives, settings.scalarise, settings.weights, baselines.values())
    return Scalarised(build(node, key, spec, (SCALAR,), seed=settings.seed), scalarisation)


def _check_asynchronous(config: Config, phase: str, strategy: Strategy) -> None:
    if config.search.ordered or getattr(strategy, "asynchronous", False):
        return
    from evomerge.config.groups import asynchronous_strategies

    inner = strategy.inner if isinstance(strategy, Scalarised) else strategy
    raise ConfigError(
        f"search.ordered is false and {_node(config, phase, 'strategy')[1]} is {type(inner).__name__}",
        "it proposes a generation and waits until all of it has been told",
        f"set search.ordered=true, or choose strategy={', '.join(asynchronous_strategies())}",
    )


def _targets(config: Config) -> list[str]:
    """The classes that workers build."""
    nodes = [plain(node) for node in (config.fitness, config.held_out)]
    return [str(node[TARGET]) for node in nodes if isinstance(node, Mapping) and TARGET in node]


def remote_worker(
    plain: dict[str, Any],
    refs: Mapping[str, ModelRef],
    folder: str,
    *,
    device: str,
    threads: int | None,
    cache: CacheSettings,
) -> Worker:
    """Build a worker in another process from the plain configuration, the pinned models and the folder to be in.

    Where there is no such folder, which is another machine, the process stays in its own.

    Raises:
        PoolError: a model is not what it is where the search runs.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    folder = os.getcwd()
    config = cast(Config, OmegaConf.create(plain))
    import_modules(config.imports, "imports", folder)
    settings = config.pool
    pool = open_pool(
        refs,
        base=settings.base,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        fingerprints=False,
    )
    for name, ref in refs.items():
        for problem in changed_since(name, ref, pool.checkpoints[name]):
            raise problem
    fitnesses: dict[Split, Fitness] = {"search": fitness_from_config(config, "fitness")}
    if config.held_out is not None:
        fitnesses["held_out"] = fitness_from_config(config, "held_out")
    return Worker(pool, fitnesses, device=device, threads=threads, cache=cache)


def run(config: Config, parts: Parts, observers: Sequence[Observer] = (), again: Resumed | None = None) -> RunFolder:
    """Run a search into its run folder. The parts are closed at the end, whatever happens.

    Args:
        config: of the whole experiment.
        parts: built from it.
        observers: told of everything that enters the ledger.
        again: a run to go on with; ``None`` for a new one, whose folder is made.

    Raises:
        KeyboardInterrupt: a signal ended it; what was told is in the ledger.
        GaveUpError: everything failed; the same.
    """
    settings = config.search
    folder = RunFolder.create(config.run_dir) if again is None else again.folder
    if again is None:
        write_text_atomic(folder.config, to_yaml(cast(DictConfig, config)))
        if parts.pool is not None:
            folder.write_pool(parts.pool.info)
    objectives = parts.fitness.objectives
    sync: Literal["every", "interval"] = "interval" if settings.sync == "interval" else "every"
    incumbent = Incumbent(objectives, settings.best or settings.scalarise, settings.weights)
    source = Source(RunFolder.open(config.from_run)) if config.from_run is not None else None
    with (
        Interrupts() as interrupts,
        closing(source) if source is not None else nullcontext(),
        tracking(parts.trackers, folder, plain(config), resumed=again is not None) as trackers,
        closing(parts.evaluator),
        _ledger(folder, sync, again, Observers([*observers, *trackers])) as ledger,
        Checkpoints(
            folder,
            every=settings.checkpoint.every,
            evaluations=settings.checkpoint.evaluations,
            keep=settings.checkpoint.keep,
        ) as checkpoints,
    ):
        fingerprint = parts.evaluator.fingerprint("search")
        if again is not None:
            folder.sweep()
            again.check(fingerprint)
            again.keep_budget()
        keep: Keeper = BestFolder(folder, parts.pool)
        evaluator: Evaluator = parts.evaluator
        if source is not None:
            source.check(fingerprint)
            evaluator = ForkedEvaluator(evaluator, source)
        if again is not None and isinstance(ledger, ContinuedLedger):
            keep, evaluator = again.keeper(ledger, keep, incumbent), RecordedEvaluator(evaluator, again.record)
        try:
            ledger.append(
                "started",
                seed=settings.seed,
                evaluations=settings.evaluations,
                objectives={o.name: o.direction for o in objectives},
                fitness=fingerprint,
                versions=library_versions(),
                **({"from_run": source.event} if source is not None else {}),
            )
            search = Search(
                pool=parts.pool.info if parts.pool is not None else None,
                phases=parts.phases,
                evaluator=evaluator,
                incumbent=incumbent,
                ledger=ledger,
                keep=keep,
                baselines=settings.baselines,
                held_out=parts.held_out is not None,
                ordered=settings.ordered,
                in_flight=settings.in_flight,
                warm=lambda space, number: parts.warm(space, fingerprint, number == 0),
                stop=interrupts.wanted,
                save=StateSaver(checkpoints),
                give_up=settings.give_up,
            )
            if isinstance(ledger, ContinuedLedger):
                begin(search, ledger)
            interrupts.settled = lambda: search.settled
            search.run()
        except (KeyboardInterrupt, GaveUpError) as error:
            reason = interrupts.name or "SIGINT" if isinstance(error, KeyboardInterrupt) else error.given
            ledger.append("interrupted", reason=reason)
            raise
    # For reports: the items that the winner is judged by.
    write_texts(folder, "search" if parts.held_out is None else "held_out", parts.held_out or parts.fitness)
    return folder


def _ledger(folder: RunFolder, sync: Literal["every", "interval"], again: Resumed | None, observe: Observers) -> Ledger:
    if again is None:
        return Ledger(folder, sync=sync, observe=observe)
    return ContinuedLedger(folder, again.record, resumed=again.event, sync=sync, observe=observe)
