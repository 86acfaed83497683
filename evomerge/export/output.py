"""Where a model may be written. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import OutputError
from evomerge.run.outputs import check_output_folder


def check_output(out: Path) -> None:
    """Raise `OutputError` unless `out` is a folder that does not exist yet or is empty, and no run's own."""
    check_output_folder(out)
    if out.is_dir():
        if any(out.iterdir()):
            raise OutputError(
                f"output folder {out} is not empty",
                "a new or an empty folder",
                "name another folder, or empty this one",
            )
    elif out.exists() or out.is_symlink():
        raise OutputError(f"{out} is a file", "a new or an empty folder", "name another folder")
