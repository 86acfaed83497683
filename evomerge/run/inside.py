"""What of a run a path is, for who was given part of a run in the place of the whole."""

from __future__ import annotations

import os
from pathlib import Path

LEDGER = "ledger.jsonl"
_FILES = {
    LEDGER: "the ledger",
    "ledger.lock": "the lock of the ledger",
    "config.yaml": "the configuration",
    "pool.json": "the list of models",
    "workers.json": "the list of workers",
    "log.txt": "the log",
    "report.html": "the report",
    "best/pareto.yaml": "the list of the Pareto front",
    "best/weights.safetensors": "the winner's weights",
}
_FOLDERS = {"items": "a file of per-item scores", "checkpoint": "a file of a checkpoint", "rating": "a file of ratings"}


def surrounding_run(path: str | Path) -> Path | None:
    """The run folder that `path` lies in, which is not `path` itself; ``None`` where there is none."""
    for folder in list(Path(path).parents)[:4]:
        if os.path.isfile(folder / LEDGER):  # pathlib's raises for names that are too long
            return folder
    return None


def part_of_run(path: str | Path) -> tuple[str, Path] | None:
    """What of a run `path` is, and the run folder: ``("the ledger", runs/demo)``.

    ``None`` for what a search does not write, and for what is read by itself: recipes.
    """
    run = surrounding_run(path)
    if run is None or not os.path.exists(path):
        return None
    inside = Path(path).relative_to(run)
    if os.path.isdir(path):
        return ("a folder", run) if inside.parts[0] in (*_FOLDERS, "best") else None
    known = _FILES.get(inside.as_posix()) or (_FOLDERS.get(inside.parts[0]) if len(inside.parts) > 1 else None)
    return (known, run) if known else None


def instead_of_part(path: str | Path, *, recipes: bool = True) -> tuple[str, str]:
    """What is said of a path that is a part of a run where another was wanted: what it is, and what to give.

    Both are empty where it is none.

    Args:
        path: what was given.
        recipes: whether what is none of the parts that a search writes, or can be read as a recipe, was wanted too.
    """
    found, run = part_of_run(path), surrounding_run(path)
    if found is None and not recipes and run is not None and os.path.exists(path):
        found = "a folder" if os.path.isdir(path) else "a file", run
    return (f"{path} is {found[0]} of the run {found[1]}", f"give {found[1]}") if found else ("", "")
