"""Which task of a fitness is scored with which switch or head of a model, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.errors import ConfigError, nearest


def check_switches(
    fitness: Any,
    held_out: Any,
    tasks: Sequence[str],
    validation: Any = None,
    cheap: Any = None,
    heads: Sequence[str] = (),
) -> None:
    """Check that each task of the fitnesses names a switch or head that candidates have, or none where they have none.

    Args:
        fitness, held_out: of the configuration; the second may be ``None``.
        tasks: names of the switches; empty where candidates have none.
        validation, cheap: as `held_out`.
        heads: names of the tasks with heads of their own; empty where the pool has none.

    Raises:
        ConfigError: a task without a switch, or with one that is not there; names the key.
    """
    named = ("fitness", fitness), ("cheap", cheap), ("validation", validation), ("held_out", held_out)
    for key, part in named:
        if part is not None:
            names = tuple(dict.fromkeys(tasks or heads))
            check_fitness_switches(part, key, names, has_head=bool(heads) or is_headed(part))


def is_headed(fitness: Any) -> bool:
    """Whether a fitness names heads, and not switches."""
    return getattr(fitness, "switch_key", "switch") == "head"


def check_fitness_switches(fitness: Any, key: str, tasks: Sequence[str], *, has_head: bool = False) -> None:
    """`check_switches` of one fitness.

    Args:
        fitness: of the configuration.
        key: where it stands.
        tasks: names of the switches or heads; empty where there are none.
        has_head: whether they are heads.
    """
    if hasattr(fitness, "parts"):
        for name, own in fitness.parts.items():
            check_fitness_switches(own, f"{key}.parts.{name}", tasks, has_head=has_head)
        return
    what, do = "switch", "search_space=switch makes models with one"
    if has_head:
        what, do = "head", "heads of their own are found where labels differ; pool.heads names them otherwise"
    named = fitness.switches() if hasattr(fitness, "switches") else None
    if named is None:
        if tasks:
            raise ConfigError(
                f"{key} scores a model in one piece, and candidates have a {what} for {', '.join(tasks)}",
                "a fitness that scores each task with its own",
                "fitness=classification does; pool.heads=null merges heads"
                if has_head
                else "fitness=lm_eval does; or choose search_space=parameter",
            )
        return
    own = str(getattr(fitness, "switch_key", "switch"))
    example = f"{{task: {named[0][0]}, {own}: {tasks[0] if tasks else 'SOURCE'}}}"
    for place, (label, source) in enumerate(named):
        where = f"{key}.tasks[{place}]"
        if source is not None and not tasks:
            raise ConfigError(
                f"{where}.{own} is {source!r}, and the models have no {what}", f"a model with a {what}", do
            )
        if source is None and tasks and has_head and own == "switch":
            raise ConfigError(
                f"{where} ({label}) is for models that write texts, and these carry heads of {', '.join(tasks)}",
                "fitness=classification, images or segmentation for classifiers, whose heads write no texts",
                f"leave {label} out; of language models whose heads are carried, write {example}",
            )
        if source is None and tasks:
            raise ConfigError(
                f"{where} ({label}) has no {own}",
                f"the source whose own {'head' if has_head else 'part'} is on: {', '.join(tasks)}",
                f"write it as {example}",
            )
        if source is not None and source not in tasks:
            raise ConfigError(f"{where}.{own} is {source!r}", nearest(source, tasks))
