"""Builds the parts of a run from its configuration, checking every key before anything is loaded."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Split
from evomerge.config.construct import TARGET, build, to_builtin
from evomerge.config.schema import Config
from evomerge.config.trust import leaves
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.worker_builder import ShippedBuilder
from evomerge.protocols import Evaluator, Fitness, SearchSpace, Strategy
from evomerge.run.folder import RunFolder
from evomerge.search.incumbent import check_choice
from evomerge.search.phases import Phase
from evomerge.search.racing.race import Race
from evomerge.search.racing.settings import AUTO
from evomerge.search.stopping import StopRules
from evomerge.search.warm_start import WarmStartSources
from evomerge.session.adapters import AdapterPlan, plan_adapters
from evomerge.session.builders import (
    check_asynchronous,
    check_fitnesses,
    fitness_from_config,
    phase_nodes,
)
from evomerge.session.calibration import Calibration, check_apart, plan_calibration
from evomerge.session.engines import check_held, check_quantised, check_vllm_heads, require_engine
from evomerge.session.gene_budget import fit_spaces
from evomerge.session.open_priors import settle_priors
from evomerge.session.pools import check_scored, pool_from_config
from evomerge.session.prior import measured, remembered
from evomerge.session.race_choice import RaceChoice, chosen_race
from evomerge.session.racing import check_validation, count_finalists
from evomerge.session.series import fill_models
from evomerge.session.settings import built_from, check_nodes, check_pool, check_settings
from evomerge.session.switches import check_switches
from evomerge.trackers.tracker import Tracker, trackers_from_config
from evomerge.utils.imports import import_modules, own_files

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker
    from evomerge.models.pool import Pool


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
        race: scores candidates on some items first; ``None`` for all at once.
        race_choice: what was chosen where ``search.racing.first`` is ``auto``; ``None`` where it is not.
        finalists: how many of the best are scored on all items in the end.
        rescores: whether they are also where the search scored them on all: it did so with quantised weights.
        scored_with: the engine and what weights are quantised to, as the ledger says it; empty for neither.
        rules: what ends the search early.
        calibration: statistics of data that methods read, some of which may still be to be made.
        calibration_seconds: that making them took.
        validation: of the finalists' own items; ``None`` where they are those of the search.
        cheap: of the race's cheap rung; ``None`` where there is no such rung.
        left_open: keys of the race and of priors that were ``auto``, and have been settled.
        unread_prior: a prior that is settled once the models are read, in words; empty where there is none.
        adapters: how candidates go to vLLM; ``None`` where another engine scores.
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
    race: Race | None = None
    race_choice: RaceChoice | None = None
    validation: Fitness | None = None
    cheap: Fitness | None = None
    left_open: Sequence[str] = ()
    unread_prior: str = ""
    finalists: int = 0
    rescores: bool = False
    scored_with: Mapping[str, Any] = field(default_factory=dict)
    rules: StopRules = field(default_factory=StopRules)
    adapters: AdapterPlan | None = None
    calibration: Calibration | None = None
    calibration_seconds: float = 0.0

    @property
    def space(self) -> SearchSpace:
        """That of the first phase."""
        return self.spaces[0]

    @property
    def strategy(self) -> Strategy:
        """That of the first phase."""
        return self.strategies[0]


def build_parts(config: Config, run: RunFolder | None = None, *, read: bool = True) -> Parts:
    """Build and check every part; the order is that of cost, so that errors come early.

    Args:
        config: of the whole experiment. What a search space and the race leave open (`auto`) is filled in, and
            `pool.checkpoints` and `pool.adapters` become `pool.models`.
        run: one that is gone on with; that which the configuration's `from_run` names for ``None``. Slices without
            genes are those that had none there.
        read: whether the models are read for a prior that is left open, where they were not before.
    """
    check_settings(config)
    goes_on = run is not None
    import_modules(config.imports, "imports")
    check_nodes(config)
    session = secrets.token_hex(3)
    engine = require_engine(config, session)
    trackers = trackers_from_config(config.trackers)
    wanted = built_from(config)
    fill_models(config)
    pooled = wanted != "fitnesses" or bool(config.pool.models)
    if pooled:
        check_pool(config)
    if isinstance(settings := to_builtin(config.evaluator), Mapping) and settings.get("device", "auto") != "auto":
        from evomerge.evaluation.devices import check_device

        check_device(settings, here=wanted == "worker")
    fitness = fitness_from_config(config, "fitness")
    held_out = fitness_from_config(config, "held_out") if config.held_out is not None else None
    objectives = tuple(fitness.objectives)
    check_choice(config.search.best, objectives, config.search.weights)
    rules = StopRules.of(config.search, objectives)
    warm = WarmStartSources(
        [str(source) for source in config.search.warm_start], config.search.warm_start_evaluations, objectives
    )
    if run is None and config.from_run is not None:
        run = RunFolder.open(config.from_run)
    validation = fitness_from_config(config, "validation") if config.validation is not None else None
    check_validation(config, objectives, validation)
    cheap = fitness_from_config(config, "cheap") if config.cheap is not None else None
    fitnesses: dict[Split, Fitness] = {"search": fitness, "validation": validation or fitness}
    if cheap is not None:
        fitnesses["cheap"] = cheap
    if held_out is not None:
        fitnesses["held_out"] = held_out
    local = _LocalBuilder(fitnesses, engine)
    evaluator: Evaluator | None = build(_with_cache(config), "evaluator", local) if wanted == "worker" else None
    pool = pool_from_config(config) if pooled else None
    calibration = plan_calibration(config, pool) if pool is not None else None
    if calibration is not None:
        pool = calibration.pool
    if pool is not None and run is not None and run.pool.is_file():
        pool = _with_genes_of(pool, run)
    measure = functools.partial(measured, pool) if pool is not None else None
    nodes = phase_nodes(config, pool.info if pool is not None else None, measure)
    fitted = fit_spaces(nodes, pool.info) if pool is not None else ()
    spaces = [node.space(None) for node in nodes]
    adapters = None
    if pool is not None:
        check_quantised(engine, pool, config.evaluator)
        check_vllm_heads(engine, pool, config.evaluator)
        check_held(engine, pool, spaces, [node.key for node in nodes])
        keys, scoring = [node.key for node in nodes], list(fitnesses.values())
        adapters = plan_adapters(engine, pool, spaces, keys, scoring, None if goes_on else config.evaluator)
        if adapters is not None and adapters.chosen:
            config.evaluator.adapters_at_once = 0  # kept with the run, which stays so wherever it goes on
        local.engine = engine = replace(engine, adapters=adapters.at_once if adapters is not None else 0)
    phases = [node.phase(config, objectives) for node in nodes]
    strategies = [phase.strategy(space.spec, {}) for phase, space in zip(phases, spaces, strict=True)]
    for phase, strategy in zip(phases, strategies, strict=True):
        check_asynchronous(config, phase.name, strategy)
    switches = [task for space in spaces for task in getattr(space, "switch_tasks", ())]
    heads = pool.info.heads.tasks if pool is not None and pool.info.heads is not None else ()
    if pool is not None:
        for part in filter(None, (fitness, cheap, validation, held_out)):
            check_scored(pool, part)
    check_switches(fitness, held_out, switches, validation, cheap, heads)
    warm.check(spaces)
    if pool is None or wanted == "fitnesses":
        evaluator = build(_with_cache(config), "evaluator", fitnesses)
    local.pool = pool
    check_fitnesses(fitness, held_out, pool)
    if cheap is not None:
        check_fitnesses(cheap, None, pool, key="cheap")
    documents = calibration.documents if calibration is not None else ()
    if validation is not None:
        check_fitnesses(validation, None, pool, key="validation")
        check_apart(documents, validation)
    check_apart(documents, held_out)
    if evaluator is None:  # a cluster is not connected to for tasks that are none
        assert pool is not None
        evaluator = build(_with_cache(config), "evaluator", _shipped(config, pool, session, engine.adapters))
    racing = to_builtin(config.search.racing)
    left_open = [f"search.racing.{key}" for key in ("first", "most") if racing[key] == AUTO]
    left_open += ["search.refine.after"] if config.search.refine.after == AUTO else []
    race, choice = chosen_race(config, fitness, strategies, cheap, spaces)
    known = measure if read or pool is None else functools.partial(remembered, pool)
    few = race is not None and race.steps != [1.0]  # items that tell candidates apart
    open_priors, unread = settle_priors(config, nodes, spaces, few, known)
    if open_priors:
        nodes = phase_nodes(config, pool.info if pool is not None else None, measure)
        spaces = [node.space(None) for node in nodes]
        phases = [node.phase(config, objectives) for node in nodes]
    if open_priors or "search.refine.after" in left_open:
        strategies = [phase.strategy(space.spec, {}) for phase, space in zip(phases, spaces, strict=True)]
    rescores = engine.quantises("search") != engine.quantises("validation")
    finalists = count_finalists(config, objectives, race is not None or rescores)
    parts = pool, spaces, strategies, evaluator, fitness, held_out, phases, warm, trackers
    more: dict[str, Any] = {"race": race, "race_choice": choice, "finalists": finalists, "rules": rules}
    more |= {"validation": validation, "cheap": cheap, "left_open": [*left_open, *open_priors], "unread_prior": unread}
    more |= {"rescores": rescores, "scored_with": engine.event, "adapters": adapters}
    return Parts(*parts, fitted=fitted, calibration=calibration, **more)


def _with_genes_of(pool: Pool, run: RunFolder) -> Pool:
    """The pool, of whose equal slices only those count as such that did in a run: the others have genes there."""
    known = set(run.read_pool().constant)
    return replace(pool, info=replace(pool.info, constant=tuple(s for s in pool.info.constant if s in known)))


@dataclass
class _LocalBuilder:
    """Builds the worker of this process. It is there before the pool, so that the evaluator's settings are checked."""

    fitnesses: Mapping[Split, Fitness]
    engine: EngineSettings
    pool: Pool | None = None

    @property
    def together(self) -> int:
        """How many candidates the worker takes at once."""
        return max(1, self.engine.adapters) if self.engine.is_vllm else 1

    def __call__(self, **settings: Any) -> Worker:
        """Build it, once the pool is there."""
        from evomerge.evaluation.worker import Worker

        assert self.pool is not None
        return Worker(self.pool, self.fitnesses, engine=self.engine, **settings)


def _shipped(config: Config, pool: Pool, session: str, adapters: int) -> ShippedBuilder:
    """Builds a worker in another process, which opens its own pool; it takes so many adapters at once."""
    from evomerge.session.remote_worker import remote_worker

    plain = to_builtin(config)
    plain["evaluator"]["adapters_at_once"] = adapters
    remote = functools.partial(remote_worker, plain, dict(pool.info.refs), os.getcwd(), pool.info.calibration, session)
    return ShippedBuilder(remote, own_files([*config.imports, *_targets(config)]), max(1, adapters))


def _with_cache(config: Config) -> Any:
    """The evaluator's node, where ``shared_cache: run`` is a folder in the run's."""
    node = to_builtin(config.evaluator)
    if isinstance(node, dict) and node.get("shared_cache") == "run":
        node["shared_cache"] = str(Path(config.run_dir).absolute() / "slices")
    return node


def _targets(config: Config) -> list[str]:
    """The classes that workers build, those of a fitness's parts too."""
    content = {name: to_builtin(getattr(config, name)) for name in ("fitness", "cheap", "validation", "held_out")}
    return [str(value) for key, value in leaves(content) if key.rpartition(".")[2] == TARGET]
