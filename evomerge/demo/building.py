"""Folders of the demo that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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


def is_there(folder: Path, wanted: Mapping[str, Any], what: str) -> bool:
    """Whether a folder holds what `write_manifest` said of it; anything else that the demo made may be replaced.

    Args:
        folder: that may be there.
        wanted: what it shall hold, as JSON values.
        what: it holds, for messages.

    Raises:
        OutputError: the folder is none of the demo's.
    """
    manifest = folder / _MANIFEST
    if not folder.exists():
        return False
    if not manifest.is_file():
        raise OutputError(f"{folder} holds no {what} of a demo", "a new folder", "move it away")
    return bool(json.loads(manifest.read_text(encoding="utf-8")) == wanted)


def write_manifest(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Say what a folder that is being built holds."""
    (folder / _MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
