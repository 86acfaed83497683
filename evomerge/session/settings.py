"""What can be said of a configuration before models are opened and tasks loaded. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evomerge.config.construct import TARGET, check_node, locate, to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.models.pool_settings import (
    check_dense,
    check_heads,
    check_kept,
    check_network,
    check_places,
    check_pool_settings,
)
from evomerge.objectives import SCALARISATIONS
from evomerge.run.checkpoint import check_intervals
from evomerge.search.in_flight import MOST_IN_FLIGHT
from evomerge.search.phases import split_budget
from evomerge.search.stopping import check_rules
from evomerge.session.builders import phase_node, without_bounds, without_prior
from evomerge.session.phase_entries import check_phases
from evomerge.session.racing import check_race
from evomerge.session.refining import check_refining
from evomerge.strategies.bases.penalised import check_penalty

DISPLAYS = ("auto", "live", "plain", "quiet")
_MOST = 10**9
_LONGEST_NAME = 200  # bytes; file systems take 255


def check_settings(config: Config) -> None:
    """Check the schema's own keys.

    Raises:
        ConfigError: names the key.
    """
    _check_search(config)
    phases = check_phases(config)
    if phases:
        split_budget(config.search.evaluations, {name: entry.get("evaluations") for name, entry in phases.items()})


def check_nodes(config: Config) -> None:
    """Check the keys of the parts, and the types of their values, and the race; the fitnesses' when they are made.

    Raises:
        ConfigError: names the key.
    """
    phases = list(check_phases(config)) or [""]
    for phase in phases:
        for part, given in (("search_space", {"winner"}), ("strategy", {"seed"})):
            node, key = phase_node(config, phase, part)
            own = without_bounds(node)[0] if part == "search_space" else without_prior(node, key)[0]
            check_node(own, key, 2, given)
    check_node(config.evaluator, "evaluator", 1)
    check_race(config)


def check_pool(config: Config) -> None:
    """Check what the pool is asked to be, and that its models are there.

    Raises:
        ConfigError, PoolError: names the key or the model.
    """
    pool: Any = config.pool
    models = to_builtin(pool.models)
    check_pool_settings(models, pool.base, pool.dtype, pool.get("tokenizer_from"), to_builtin(pool.get("tokenizer")))
    check_heads(to_builtin(pool.get("heads", "auto")))
    check_kept(to_builtin(pool.get("kept")), pool.get("kept_from"), models)
    check_dense(to_builtin(pool.get("dense", "auto")))
    check_network(
        pool.get("network"), pool.get("others"), to_builtin(pool.get("tokenizer")), pool.get("tokenizer_from")
    )
    check_places(models, pool.root, files=pool.get("network") is not None)


def check_name(name: Any) -> None:
    """`ConfigError` unless a run's name can be that of one folder."""
    text = str(name)
    plain = re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", text) is not None and text.strip(". ") != ""
    if not plain or len(text.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"name is {text[:80]!r}",
            f"the name of one folder: not empty, without / and \\, at most {_LONGEST_NAME} bytes",
            "set run_dir for a run folder elsewhere",
        )


def built_from(config: Config) -> str:
    """What the evaluator's class wants to be given first; one that does not say so gets what travels."""
    node = to_builtin(config.evaluator)
    target = node.get(TARGET) if isinstance(node, Mapping) else None
    evaluator = locate(str(target), f"evaluator.{TARGET}") if target else None
    return str(getattr(evaluator, "built_from", "shipped worker"))


def _check_search(config: Config) -> None:
    settings = config.search
    if config.from_run is not None and not config.from_run:
        raise ConfigError("from_run is empty", "a run folder", "leave it out to begin without one")
    if not 1 <= settings.evaluations <= _MOST:
        reason = f"1 to {_MOST:,}, which take twelve days at a millisecond each"
        raise ConfigError(f"search.evaluations is {settings.evaluations}", reason)
    if settings.in_flight is not None and not 1 <= settings.in_flight <= MOST_IN_FLIGHT:
        raise ConfigError(f"search.in_flight is {settings.in_flight}", f"1 to {MOST_IN_FLIGHT:,}, or null")
    if not 0 <= settings.seed < 2**63:
        raise ConfigError(f"search.seed is {settings.seed}", "0 to 2^63 - 1")
    if settings.give_up is not None and settings.give_up < 1:
        raise ConfigError(f"search.give_up is {settings.give_up}", "at least 1, or null")
    check_penalty(settings.penalty)
    check_refining(config)
    check_rules(settings.hours, settings.patience, to_builtin(settings.target))
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
