"""``evomerge merge`` of models with a switch or heads: one task's model, or all of them with what they share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError
from evomerge.recipes.switches import SWITCHES, require_tasks, task_recipe, tasks_of, with_switch

if TYPE_CHECKING:
    import torch

    from evomerge.export.model_card import ScoreRow
    from evomerge.models.pool import Pool
    from evomerge.recipes.recipe import Recipe


def add_switch_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--task``, ``--all-tasks`` and ``--switch``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--task", metavar="NAME", help="of a model with a switch or heads: write this task's model")
    which.add_argument(
        "--all-tasks",
        action="store_true",
        help="of a model with a switch: write the shared model and a small part for each task; "
        "`evomerge merge FOLDER OUT --task NAME` makes a task's model of them. With heads of their own: a folder for "
        "each task, which share the encoder's files",
    )
    parser.add_argument(
        "--switch",
        choices=SWITCHES,
        metavar="METHOD",
        help=f"give a recipe without a switch one, with a task for each model that it merges: {', '.join(SWITCHES)}",
    )


def check_options(options: argparse.Namespace) -> None:
    """Check what can be seen before a model is opened.

    Raises:
        ConfigError: options that contradict each other.
        RecipeError: there is no such recipe, or it has no such task.
    """
    if options.all_tasks and options.format != "model":
        raise ConfigError(
            f"--all-tasks writes models, and --format {options.format} was given",
            "an adapter is of one task",
            "write it with --task NAME",
        )
    if options.switch and not (options.task or options.all_tasks):
        raise ConfigError(
            f"--switch {options.switch} does not say what to write",
            "one task's model, or the shared one with a small part for each task",
            "add --task NAME or --all-tasks",
        )
    if options.switch is None and (options.task or options.all_tasks):
        from evomerge.cli.sources import read_recipe

        recipe = read_recipe(options.recipe, trust=options.trust)
        if options.task:
            task_recipe(recipe, options.task)
        require_tasks(recipe)


def switched(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for: with a switch, or of one task."""
    if options.switch is not None:
        recipe = given_switch(recipe, options.switch)
    return task_recipe(recipe, options.task) if options.task else recipe


def given_switch(recipe: Recipe, method: str) -> Recipe:
    """A recipe with a switch by a method, its parameters at their defaults.

    Raises:
        RecipeError: it has a switch, no base for masks, or layers of other places.
    """
    bases = [entry.base.model for entry in recipe.slices if entry.base is not None]
    used = list(dict.fromkeys(source.model for entry in recipe.slices for source in entry.inputs))
    base = bases[0] if bases else recipe.config_from if recipe.config_from not in used else None
    names = {name for name, _ in recipe.models}
    return with_switch(recipe, method, {name: {} for name in used if name in names and name != base}, base)


def write_all(
    recipe: Recipe,
    pool: Pool,
    options: argparse.Namespace,
    shard: int,
    scores: Sequence[ScoreRow],
    given: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Write the shared model with all tasks' parts, and say how large they are; `given` as of `write_all_heads`."""
    from evomerge.cli.console import merge_progress
    from evomerge.export.heads_writer import write_all_heads
    from evomerge.export.switch_writer import write_all_tasks
    from evomerge.utils.sizes import size_text

    if recipe.heads is not None:
        with merge_progress() as progress:
            sizes = write_all_heads(
                recipe, pool, options.out, max_shard_bytes=shard, scores=scores, progress=progress, given=given
            )
        print(f"wrote {options.out}: the encoder, {size_text(sizes.shared)}, shared by a folder for each task")
        for task, nbytes in sizes.parts.items():
            print(f"  {task}: its head, {size_text(nbytes)}")
        return
    with merge_progress() as progress:
        sizes = write_all_tasks(recipe, pool, options.out, max_shard_bytes=shard, scores=scores, progress=progress)
    print(f"wrote {options.out}: the shared model, {size_text(sizes.shared)}")
    for task, nbytes in sizes.parts.items():
        print(f"  {task}: {size_text(nbytes)}, {100 * nbytes / sizes.shared:.3g} % of it")
    every, count = sizes.shared + sum(sizes.parts.values()), len(sizes.parts)
    print(f"{size_text(every)} in all; {count} models would be {size_text(sizes.shared * count)}")


def write_from_folder(options: argparse.Namespace, shard: int) -> None:
    """Write one task's model, from a folder of ``--all-tasks``.

    Raises:
        ConfigError: no task, or options for recipes.
    """
    from evomerge.cli.console import merge_progress
    from evomerge.export.switch_reader import write_task

    if options.task is None:
        raise ConfigError(
            f"{options.recipe} is a shared model with the parts of tasks, and no task was given",
            "--task NAME makes one task's model of them",
            "the shared model itself is an ordinary model: load it from there",
        )
    for name, value in (("--dtype", options.dtype), ("--switch", options.switch)):
        if value is not None:
            raise ConfigError(f"{name} is for recipes, and {options.recipe} holds models", "", f"leave {name} out")
    if options.format != "model":
        given = f"--format {options.format} is for recipes, and {options.recipe} holds models"
        raise ConfigError(given, "", "give it the run or recipe that they were made from, with --task NAME")
    with merge_progress() as progress:
        write_task(
            Path(options.recipe),
            options.task,
            options.out,
            max_shard_bytes=shard,
            progress=progress,
            trust_remote_code=options.trust,
        )
    print(f"wrote {options.out}")


def say_shared(recipe: Recipe) -> None:
    """Note that what was written is one of several models, where it is."""
    from evomerge.report.plain_console import errors

    tasks = tasks_of(recipe)
    if len(tasks) > 1:
        what = "the shared model" if recipe.heads is None else f"the model of {recipe.config_from}"
        errors.print(
            f"note: this is {what}; --task NAME writes that of {', '.join(tasks)}, --all-tasks all of them",
            markup=False,
            highlight=False,
        )
