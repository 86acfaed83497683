"""A worker that another process builds for itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import OmegaConf

from evomerge.candidate import Split
from evomerge.config.schema import Config
from evomerge.errors import EvomergeWarning
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.worker import Worker
from evomerge.models.checkpoints.pins import changed_since
from evomerge.models.opening import open_pool, with_statistics
from evomerge.models.pool import Pool
from evomerge.protocols import Fitness
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.slices import ModelRef
from evomerge.session.builders import check_fitnesses, fitness_from_config
from evomerge.session.engines import engine_of
from evomerge.session.opening_settings import opening_settings
from evomerge.session.pools import network_pool
from evomerge.utils.imports import import_modules


def remote_worker(
    plain: dict[str, Any],
    refs: Mapping[str, ModelRef],
    folder: str,
    calibration: CalibrationRef | None = None,
    session: str | None = None,
    *,
    device: str,
    threads: int | None,
    cache: CacheSettings,
) -> Worker:
    """Build a worker in another process from the plain configuration, the pinned models, the folder to be in,
    the statistics of data, which lie where this machine keeps them, and the session of the run.

    Where there is no such folder, which is another machine, the process stays in its own.

    Raises:
        PoolError: a model is not what it is where the search runs.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    folder = os.getcwd()
    config = cast(Config, OmegaConf.create(plain))
    import_modules(config.imports, "imports", folder)
    settings: Any = config.pool
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvomergeWarning)  # said where the search runs
        pool = _open(settings, refs)
    for name, ref in refs.items():
        for problem in changed_since(name, ref, pool.checkpoints[name]):
            raise problem
    pool = with_statistics(pool, calibration)
    fitness = fitness_from_config(config, "fitness")
    fitnesses: dict[Split, Fitness] = {"search": fitness, "validation": fitness}
    if config.cheap is not None:
        fitnesses["cheap"] = fitness_from_config(config, "cheap")
        check_fitnesses(fitnesses["cheap"], key="cheap")
    if config.validation is not None:
        fitnesses["validation"] = fitness_from_config(config, "validation")
        check_fitnesses(fitnesses["validation"], key="validation")
    if config.held_out is not None:
        fitnesses["held_out"] = fitness_from_config(config, "held_out")
    check_fitnesses(fitnesses["search"], fitnesses.get("held_out"))
    return Worker(pool, fitnesses, device=device, threads=threads, cache=cache, engine=engine_of(config, session))


def _open(settings: Any, refs: Mapping[str, ModelRef]) -> Pool:
    """The pool of these pinned models."""
    if settings.get("network") is not None:
        return network_pool(settings, refs, fingerprints=False)
    return open_pool(
        refs,
        base=settings.base,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        fingerprints=False,
        **opening_settings(settings),
    )
