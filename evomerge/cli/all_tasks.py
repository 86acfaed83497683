"""Folders that ``evomerge merge --all-tasks`` wrote, where a model is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.models.pool import Pool
    from evomerge.recipes.recipe import Recipe


def refuse_parts(target: str, task: str | None) -> None:
    """Refuse one task of a folder that holds a shared model and parts of tasks; note what is scored without one.

    Raises:
        ConfigError: a task is asked for, whose model is still to be written.
    """
    if not (Path(target) / "config.json").is_file():  # no model's folder: nothing heavy is imported for a run's
        return
    from evomerge.export.switch_parts import FOLDER
    from evomerge.export.switch_reader import is_switch_folder
    from evomerge.export.writer import RECIPE_FILE
    from evomerge.recipes.switches import tasks_of
    from evomerge.recipes.yaml_reader import read_recipe_file
    from evomerge.report.plain_console import errors

    if not is_switch_folder(Path(target)):
        return
    tasks = ", ".join(tasks_of(read_recipe_file(Path(target) / FOLDER / RECIPE_FILE)))
    if task is not None:
        raise ConfigError(
            f"{target} holds a shared model and a part for each task ({tasks}), and --task {task} was given",
            "a task's model, written as a folder of its own",
            f"`evomerge merge {target} OUT --task {task}` writes it: evaluate OUT, or the run with --task",
        )
    errors.print(
        f"note: {target} holds a shared model and a part for each task: scored is the shared model; "
        f"`evomerge merge {target} OUT --task NAME` writes that of {tasks}",
        markup=False,
        highlight=False,
    )


def open_heads(target: str, dtype: str, *, trust: bool = False) -> tuple[Recipe, Pool] | None:
    """The encoder with the heads of all tasks, of a folder with a model for each; ``None`` for any other folder.

    Args:
        target: that may be one.
        dtype: of the models; ``auto`` for that in which they are stored.
        trust: run code that they bring along.

    Raises:
        ConfigError: a task's model is missing.
        PoolError: the models cannot be opened.
    """
    from evomerge.export.heads_writer import task_folders
    from evomerge.export.writer import RECIPE_FILE
    from evomerge.models.opening import open_pool
    from evomerge.recipes.yaml_reader import read_recipe_file

    folder = Path(target)
    if not (folder / RECIPE_FILE).is_file() or (folder / "config.json").exists():
        return None
    recipe = read_recipe_file(folder / RECIPE_FILE)
    if recipe.heads is None:
        return None
    folders = task_folders(recipe.heads.tasks)
    for task, name in folders.items():
        if not (folder / name / "config.json").is_file():
            given = f"{target} holds a model for each task, and that of {task} is missing"
            raise ConfigError(
                given, f"the folder {folder / name}", "write all again: `evomerge merge RUN OUT --all-tasks`"
            )
    models = {task: str(folder / name) for task, name in folders.items()}
    pool = open_pool(models, dtype=dtype, trust_remote_code=trust, heads=list(recipe.heads.tensors))
    return pool.info.linear({next(iter(models)): 1.0}), pool
