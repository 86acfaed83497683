"""Builds the parts of a run from its configuration, checking every key before anything is loaded."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.candidate import Split
from evomerge.config.construct import TARGET, build, to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.evaluation.worker import Worker
from evomerge.evaluation.worker_builder import ShippedBuilder, WorkerBuilder
from evomerge.models.pool import Pool
from evomerge.objectives import SCALARISATIONS
from evomerge.protocols import Evaluator, Fitness, SearchSpace, Strategy
from evomerge.run.checkpoint import check_intervals
from evomerge.search.incumbent import check_choice
from evomerge.search.phases import Phase
from evomerge.search.warm_start import WarmStartSources
from evomerge.session.builders import (
    _bound,
    _check_asynchronous,
    _strategy,
    fitness_from_config,
    phases_from_config,
    pool_from_config,
)
from evomerge.session.remote_worker import remote_worker
from evomerge.trackers.tracker import Tracker, trackers_from_config
from evomerge.utils.imports import import_modules, own_files

DISPLAYS = ("auto", "live", "plain", "quiet")


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
    warm: WarmStartSources
    trackers: Sequence[tuple[str, Tracker]] = ()


def build_parts(config: Config) -> Parts:
    """Build and check every part; the order is that of cost, so that errors come early."""
    import_modules(config.imports, "imports")
    _check_search(config)
    trackers = trackers_from_config(config.trackers)
    target = str((to_builtin(config.evaluator) or {}).get(TARGET, ""))
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
    warm = WarmStartSources(
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
        remote = functools.partial(remote_worker, to_builtin(config), dict(pool.info.refs), os.getcwd())
        worker = ShippedBuilder(remote, own_files([*config.imports, *_targets(config)]))
    evaluator = build(_with_cache(config), "evaluator", worker)
    return Parts(pool, spaces[0], strategies[0], evaluator, fitness, held_out, phases, warm, trackers)


def _with_cache(config: Config) -> Any:
    """The evaluator's node, where ``shared_cache: run`` is a folder in the run's."""
    node = to_builtin(config.evaluator)
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


def _targets(config: Config) -> list[str]:
    """The classes that workers build."""
    nodes = [to_builtin(node) for node in (config.fitness, config.held_out)]
    return [str(node[TARGET]) for node in nodes if isinstance(node, Mapping) and TARGET in node]
