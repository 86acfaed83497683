"""The entries of `phases` in a configuration: their keys, their preferences, and their budgets in a longer run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.objectives import Objective
from evomerge.preferences import named_or_lattice
from evomerge.search.phases import split_budget

KEYS = ("search_space", "strategy", "evaluations", "preferences")


def check_phases(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """The entries of `phases`, by name; empty where there are none.

    Raises:
        ConfigError: an entry that is no mapping, a key that it has not.
    """
    entries = to_builtin(config.phases) if config.phases else {}
    if not isinstance(entries, Mapping):
        raise ConfigError(f"phases is {entries}", "a mapping of names to phases")
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"phases.{name} is {entry}", "a mapping with search_space, strategy and evaluations")
        for key in entry:
            if key not in KEYS:
                raise ConfigError(f"phases.{name} has no key {key!r}", nearest(str(key), KEYS))
    return entries


def check_preferences(
    wanted: Any, phase: str, evaluations: int, objectives: Sequence[Objective]
) -> tuple[Mapping[str, float], ...]:
    """The weights of every preference of a phase, by objective; none where its entry has no `preferences`.

    Args:
        wanted: what the entry says: how many at most, or a list of weights by objective.
        phase, evaluations: its name and its budget.
        objectives: of the fitness.

    Raises:
        ConfigError: one objective, weights that are none, or fewer evaluations than preferences.
    """
    if wanted is None:
        return ()
    key, names = f"phases.{phase}.preferences", [objective.name for objective in objectives]
    if len(names) < 2:
        raise ConfigError(
            f"{key} is set, and the fitness has one objective ({names[0]})",
            "preferences are among several",
            "give tasks objectives of their own (objective: NAME), or leave it out",
        )
    rows = named_or_lattice(wanted, names, key)
    if len(rows) > evaluations:
        raise ConfigError(
            f"phases.{phase} has {evaluations} evaluations for {len(rows)} preferences", "one for each at least"
        )
    return tuple(dict(zip(names, row, strict=True)) for row in rows.tolist())


def longer_last(config: DictConfig, before: int) -> dict[str, int]:
    """Give the last of several phases what the budget has grown by: the others' winners stay; returns all budgets."""
    if not isinstance(config.phases, DictConfig) or len(config.phases) < 2:
        return {}
    given = {str(name): (phase or {}).get("evaluations") for name, phase in config.phases.items()}
    budget, more = split_budget(before, given), int(config.search.evaluations) - before
    last = list(budget)[-1]
    if (config.phases[last] or {}).get("preferences") is not None:
        raise ConfigError(
            f"search.evaluations was {before}, an equal part of which was for each preference of phase {last}",
            "a run whose last phase has preferences keeps its budget",
            "start a new one with from_run=RUN: evaluations that were made are not made again",
        )
    if more < 0:
        raise ConfigError(f"search.evaluations was {before}", "a run of several phases can be given more")
    budget[last] += more
    for name, evaluations in budget.items():
        config.phases[name].evaluations = evaluations
    return budget
