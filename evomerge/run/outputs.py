"""Where results may be written: over nothing that belongs to a run, to a model, or is being read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from evomerge.errors import OutputError
from evomerge.run.inside import LEDGER

_FILES = {LEDGER, "ledger.lock", "config.yaml", "pool.json", "workers.json", "trackers.json", "log.txt"}
_FOLDERS = {"best", "items", "checkpoint", "rating"}
_MODEL = ("config.json", "adapter_config.json")
_SUFFIXES = {".yaml", ".yml", ".svg", ".html", ".npz", ".log"}
"""Of what is written here and is part of no model."""
_WRITTEN_WITH = {"evomerge_recipe.yaml"}  # by `evomerge merge`, beside the weights
_TASK = re.compile(r"^(task|group|dataset_path):", re.MULTILINE)
_MOST = 2**16  # characters that are looked at
_DO = "name another file"


def check_output_file(path: Path, reads: Sequence[str | Path] = ()) -> None:
    """Raise `OutputError` where writing a file would lose something.

    New files may lie in a run folder and beside a model, and an earlier result may be written anew.

    Args:
        path: the file to be written.
        reads: files that it is made from; folders are of no matter.
    """
    for source in reads:
        if os.path.isfile(source) and os.path.exists(path) and os.path.samefile(source, path):
            raise OutputError(f"{path} is what is read", "another file than that", _DO)
    if path.suffix in (".yaml", ".yml") and path.is_file() and _TASK.search(_beginning(path)):
        raise OutputError(f"{path} describes a task of lm-eval", "a recipe, or a file that is not there", _DO)
    for place in _places(path):
        _check_run(path, place)
        folder = place.parent
        if any((folder / name).is_file() for name in _MODEL) and (
            place.suffix not in _SUFFIXES or place.name in _WRITTEN_WITH
        ):
            raise OutputError(
                f"{path} is a file of the model {folder}" if place.exists() else f"{path} lies among a model's files",
                f"beside a model, new files that end in {', '.join(sorted(_SUFFIXES))}",
                _DO,
            )


def check_output_folder(path: Path) -> None:
    """Raise `OutputError` for a folder that a run keeps for itself, or one within."""
    for place in _places(path):
        _check_run(path, place)


def _beginning(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST)
    except OSError:
        return ""


def _check_run(path: Path, place: Path) -> None:
    for run in list(place.parents)[:4]:
        if not _is_run(run):
            continue
        first = place.relative_to(run).parts[0]
        if first in _FOLDERS or place.relative_to(run).as_posix() in _FILES:
            raise OutputError(
                f"{path} is where the run {run} keeps its own {first}",
                "a new file or folder, within the run's folder or elsewhere",
                "name another place",
            )


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, also of one that has lost its ledger."""
    return os.path.lexists(folder / LEDGER) or all((folder / name).is_file() for name in ("config.yaml", "pool.json"))


def _places(path: Path) -> Iterator[Path]:
    """A path as it is written and, where links make another of it, as it is."""
    written = Path(os.path.abspath(path))
    yield written
    real = Path(os.path.realpath(path))
    if real != written:
        yield real
