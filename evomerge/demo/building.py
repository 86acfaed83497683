"""Folders of the demo that are there whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import OutputError

_MANIFEST = "manifest.json"


@contextmanager
def built(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place in the end, and is removed where something goes wrong."""
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        building.chmod(0o755)
        yield building
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def build_once(folder: Path, wanted: Mapping[str, Any], what: str, write: Callable[[Path], None]) -> Path:
    """Build a folder, unless it already holds this very content; anything else that the demo made is replaced.

    Args:
        folder: where it goes, an absolute path.
        wanted: what it shall hold, as JSON values; ``manifest.json`` says it.
        what: it holds, for messages.
        write: writes all but the manifest into a folder beside `folder`, which then takes its place.

    Returns:
        `folder`.

    Raises:
        OutputError: the folder is none of the demo's.
    """
    manifest = folder / _MANIFEST
    if folder.exists():
        if not manifest.is_file():
            raise OutputError(f"{folder} holds no {what} of a demo", "a new folder", "move it away")
        if json.loads(manifest.read_text(encoding="utf-8")) == wanted:
            return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with built(folder) as building:
        write(building)
        (building / _MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    return folder


def versions(*modules: str) -> dict[str, str]:
    """The versions of packages, by the names that they are installed by."""
    names = ("scikit-learn" if module == "sklearn" else module for module in modules)
    return {name: importlib.metadata.version(name) for name in names}
