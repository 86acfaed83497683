"""Shows the path of a run's winner, where it is one."""

from __future__ import annotations

from pathlib import Path


def print_path(run: str | Path) -> None:
    """Print the picture of the best recipe's path; nothing where there is no recipe yet, or none that is a path."""
    from evomerge.recipes.path import path_of
    from evomerge.recipes.yaml_reader import read_recipe_file
    from evomerge.report.path_picture import PathPicture
    from evomerge.report.plain_console import console
    from evomerge.session.best_recipe import BEST_RECIPE

    file = Path(run) / BEST_RECIPE
    path = path_of(read_recipe_file(file)) if file.is_file() else None
    if path is not None:
        console.print()
        console.print(PathPicture(path))
