"""Builds the parts of a run from its configuration, checking every key before anything is loaded."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from evomerge.candidate import Split
from evomerge.config.construct import TARGET, build, locate, to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.evaluation.worker import Worker
from evomerge.evaluation.worker_builder import BuiltFrom, ShippedBuilder, WorkerBuilder
from evomerge.models.pool import Pool
from evomerge.objectives import SCALARISATIONS
from evomerge.protocols import Evaluator, Fitness, SearchSpace, Strategy
from evomerge.run.checkpoint import check_intervals
from evomerge.run.folder import RunFolder
from evomerge.search.in_flight import MOST_IN_FLIGHT
from evomerge.search.incumbent import check_choice
from evomerge.search.phases import Phase
from evomerge.search.warm_start import WarmStartSources
from evomerge.session.builders import (
    check_asynchronous,
    check_tokenizer,
    fitness_from_config,
    phase_nodes,
    pool_from_config,
)
from evomerge.session.gene_budget import fit_spaces
from evomerge.session.remote_worker import remote_worker
from evomerge.trackers.tracker import Tracker, trackers_from_config
from evomerge.utils.imports import import_modules, own_files

DISPLAYS = ("auto", "live", "plain", "quiet")
_MOST = 10**9


@dataclass
class Parts:
    """Everything a run is made of, built and checked, with nothing large loaded yet.

    Attributes:
        pool: ``None`` where genomes are the models.
        phases: one or several.
        spaces, strategies: of every phase, as they begin.
        warm: what the search begins with.
        trackers: by name.
        overlap: share of the held-out items that are items of the search too; ``None`` where that is not known.
        fitted: keys of search spaces that were chosen by the number of evaluations, with their values.
    """

    pool: Pool | None
    spaces: Sequence[SearchSpace]
    strategies: Sequence[Strategy]
    evaluator: Evaluator
    fitness: Fitness
    held_out: Fitness | None
    phases: Sequence[Phase]
    warm: WarmStartSources
    trackers: Sequence[tuple[str, Tracker]] = ()
    overlap: float | None = None
    fitted: Sequence[str] = ()

    @property
    def space(self) -> SearchSpace:
        """That of the first phase."""
        return self.spaces[0]

    @property
    def strategy(self) -> Strategy:
        """That of the first phase."""
        return self.strategies[0]


def build_parts(config: Config, run: RunFolder | None = None) -> Parts:
    """Build and check every part; the order is that of cost, so that errors come early.

    Args:
        config: of the whole experiment. What a search space leaves to the budget (`auto`) is filled in.
        run: one that is gone on with; that which the configuration's `from_run` names for ``None``. Slices without
            genes are those that had none there.
    """
    import_modules(config.imports, "imports")
    _check_search(config)
    trackers = trackers_from_config(config.trackers)
    built_from = _built_from(config)
    pool = None if built_from == "fitnesses" and not config.pool.models else pool_from_config(config)
    if run is None and config.from_run is not None:
        run = RunFolder.open(config.from_run)
    if pool is not None and run is not None and run.pool.is_file():
        pool = _with_genes_of(pool, run)
    nodes = phase_nodes(config, pool.info if pool is not None else None)
    fitted = fit_spaces(nodes, pool.info) if pool is not None else ()
    spaces = [node.space(None) for node in nodes]
    fitness = fitness_from_config(config, "fitness")
    held_out = fitness_from_config(config, "held_out") if config.held_out is not None else None
    if pool is not None:
        check_tokenizer(pool, (fitness, held_out))
    objectives = tuple(fitness.objectives)
    check_choice(config.search.best, objectives, config.search.weights)
    phases = [node.phase(config, objectives) for node in nodes]
    strategies = [phase.strategy(space.spec, {}) for phase, space in zip(phases, spaces, strict=True)]
    for phase, strategy in zip(phases, strategies, strict=True):
        check_asynchronous(config, phase.name, strategy)
    warm = WarmStartSources(
        [str(source) for source in config.search.warm_start], config.search.warm_start_evaluations, objectives
    )
    warm.check(spaces)
    fitnesses: dict[Split, Fitness] = {"search": fitness}
    if held_out is not None:
        fitnesses["held_out"] = held_out
    worker: WorkerBuilder | Mapping[Split, Fitness] = fitnesses
    if pool is not None and built_from != "fitnesses":
        worker = functools.partial(Worker, pool, fitnesses) if built_from == "worker" else _shipped(config, pool)
    evaluator = build(_with_cache(config), "evaluator", worker)
    return Parts(pool, spaces, strategies, evaluator, fitness, held_out, phases, warm, trackers, fitted=fitted)


def _with_genes_of(pool: Pool, run: RunFolder) -> Pool:
    """The pool, of whose equal slices only those count as such that did in a run: the others have genes there."""
    known = set(run.read_pool().constant)
    return replace(pool, info=replace(pool.info, constant=tuple(s for s in pool.info.constant if s in known)))


def _built_from(config: Config) -> BuiltFrom:
    """What the evaluator's class wants to be given first; one that does not say so gets what travels."""
    node = to_builtin(config.evaluator)
    target = node.get(TARGET) if isinstance(node, Mapping) else None
    evaluator = locate(str(target), f"evaluator.{TARGET}") if target else None
    return cast(BuiltFrom, getattr(evaluator, "built_from", "shipped worker"))


def _shipped(config: Config, pool: Pool) -> ShippedBuilder:
    """Builds a worker in another process, which opens its own pool."""
    remote = functools.partial(remote_worker, to_builtin(config), dict(pool.info.refs), os.getcwd())
    return ShippedBuilder(remote, own_files([*config.imports, *_targets(config)]))


def _with_cache(config: Config) -> Any:
    """The evaluator's node, where ``shared_cache: run`` is a folder in the run's."""
    node = to_builtin(config.evaluator)
    if isinstance(node, dict) and node.get("shared_cache") == "run":
        node["shared_cache"] = str(Path(config.run_dir).absolute() / "slices")
    return node


def _check_search(config: Config) -> None:
    settings = config.search
    if not 1 <= settings.evaluations <= _MOST:
        reason = f"1 to {_MOST:,}, which take twelve days at a millisecond each"
        raise ConfigError(f"search.evaluations is {settings.evaluations}", reason)
    if settings.in_flight is not None and not 1 <= settings.in_flight <= MOST_IN_FLIGHT:
        raise ConfigError(f"search.in_flight is {settings.in_flight}", f"1 to {MOST_IN_FLIGHT:,}, or null")
    if not 0 <= settings.seed < 2**63:
        raise ConfigError(f"search.seed is {settings.seed}", "0 to 2^63 - 1")
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
