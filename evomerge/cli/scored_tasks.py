"""Which of a recipe's tasks ``evomerge evaluate`` scores with which switch or head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import tasks_of
from evomerge.report.plain_console import errors
from evomerge.session.switches import check_fitness_switches, is_headed


def keep_tasks_of_head(node: Any, task: str) -> None:
    """Leave in a fitness's configuration those of its tasks that a head scores; all where none names that head.

    Args:
        node: of the configuration, changed in place.
        task: the head's name.
    """
    tasks = node.get("tasks") if isinstance(node, Mapping) else None
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        return
    if own := [each for each in tasks if isinstance(each, Mapping) and each.get("head") == task]:
        node["tasks"] = own


def check_tasks(recipe: Recipe, fitness: object, key: str) -> None:
    """Check that a recipe with several tasks has one for each of the fitness's; note where it names none.

    Args:
        recipe: to be scored.
        fitness: that scores it.
        key: where that stands in the configuration.

    Raises:
        ConfigError: a task of the fitness whose switch or head the recipe does not have.
    """
    tasks, has_head = tasks_of(recipe), recipe.heads is not None
    named = [source for _, source in getattr(fitness, "switches", list)() if source]
    if len(tasks) < 2:
        other = sorted(set(named) - set(tasks)) if is_headed(fitness) and has_head else []
        if other:
            raise ConfigError(
                f"{key} has tasks of the heads {', '.join(other)}, and the model is that of {tasks[0]}",
                f"tasks with head: {tasks[0]}",
                f"give {key}.tasks with --task, or leave --task out: then each task has its own head",
            )
        return
    if named:
        check_fitness_switches(fitness, key, tasks, has_head=has_head)
        return
    errors.print(
        f"note: no task of {key} names a {'head' if has_head else 'switch'}: scored is the "
        f"{f'model of {recipe.config_from}' if has_head else 'shared model'}; --task NAME scores that of "
        f"{', '.join(tasks)}",
        markup=False,
        highlight=False,
    )
