"""Folders of the demo that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
