"""Files and folders that a fitness names, looked for before lm-eval is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import FitnessError
from fitness._lm_eval.terms import TaskTerm


def check_files(terms: Sequence[TaskTerm], include_path: Sequence[str]) -> None:
    """Raise `FitnessError` for a folder of tasks or a task's YAML that is not there."""
    for folder in include_path:
        if not os.path.isdir(folder):  # no name is too odd for it
            raise FitnessError(
                f"include_path is {folder[:200]!r}, which is not a folder",
                "a folder with task YAMLs",
                relative_to(folder),
            )
    for term in terms:
        if isinstance(term.source, str) and term.source.endswith((".yaml", ".yml")):
            try:
                found = Path(term.source).expanduser().is_file()
            except (OSError, ValueError, RuntimeError):  # too long, a null byte, the home of nobody
                found = False
            if not found:
                raise FitnessError(f"task file {term.source[:200]!r} does not exist", relative_to(term.source))


def relative_to(file: str) -> str:
    """Where a path begins that is not absolute; for messages."""
    if file.startswith("~"):
        return "lm-eval does not expand '~'"
    return "" if Path(file).is_absolute() else f"relative paths start from the current folder, {Path.cwd()}"
