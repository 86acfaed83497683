"""Which task of a fitness is scored with which switch of a model, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.errors import ConfigError, nearest


def check_switches(
    fitness: Any, held_out: Any, tasks: Sequence[str], validation: Any = None, cheap: Any = None
) -> None:
    """Check that each task of the fitnesses names a switch that candidates have, or none where they have none.

    Args:
        fitness, held_out: of the configuration; the second may be ``None``.
        tasks: names of the switches; empty where candidates have none.
        validation, cheap: as `held_out`.

    Raises:
        ConfigError: a task without a switch, or with one that is not there; names the key.
    """
    named = ("fitness", fitness), ("cheap", cheap), ("validation", validation), ("held_out", held_out)
    for key, part in named:
        if part is not None:
            check_fitness_switches(part, key, tuple(dict.fromkeys(tasks)), "search_space=switch makes models with one")


def check_fitness_switches(fitness: Any, key: str, tasks: Sequence[str], do: str) -> None:
    """`check_switches` of one fitness.

    Args:
        fitness: of the configuration.
        key: where it stands.
        tasks: names of the switches; empty where there are none.
        do: what gives models a switch.
    """
    named = fitness.switches() if hasattr(fitness, "switches") else None
    if named is None:
        if tasks:
            raise ConfigError(
                f"{key} scores a model in one piece, and candidates have a switch for {', '.join(tasks)}",
                "a fitness that scores each task with its own",
                "fitness=lm_eval does; or choose search_space=parameter",
            )
        return
    example = f"{{task: {named[0][0]}, switch: {tasks[0] if tasks else 'SOURCE'}}}"
    for place, (label, source) in enumerate(named):
        where = f"{key}.tasks[{place}]"
        if source is not None and not tasks:
            raise ConfigError(
                f"{where}.switch is {source!r}, and the models have no switch", "a model with a switch", do
            )
        if source is None and tasks:
            raise ConfigError(
                f"{where} ({label}) has no switch",
                f"the source whose own part is on: {', '.join(tasks)}",
                f"write it as {example}",
            )
        if source is not None and source not in tasks:
            raise ConfigError(f"{where}.switch is {source!r}", nearest(source, tasks))
