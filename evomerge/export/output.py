"""Where a model may be written. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import OutputError


def check_output(out: Path) -> None:
    """Raise `OutputError` unless `out` is a folder that does not exist yet or is empty."""
    if out.is_dir():
        if any(out.iterdir()):
            raise OutputError(
                f"output folder {out} is not empty",
                "a new or an empty folder",
                "name another folder, or empty this one",
            )
    elif out.exists() or out.is_symlink():
        raise OutputError(f"{out} is a file", "a new or an empty folder", "name another folder")
