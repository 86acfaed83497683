"""Where a model or an adapter is written: complete or not there at all. Imports nothing heavy."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import OutputError
from evomerge.run.outputs import check_output_folder
from evomerge.utils.files import sync_folder


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


def check_space(folder: Path, out: Path, needed: int) -> None:
    """Refuse before the first byte when the disk cannot hold the result."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"writing {out} needs {_size(needed)}, its disk has {_size(free)} free",
            "",
            f"free {_size(needed - free)}, or name a folder on another disk",
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 10**7 else f"{nbytes} bytes"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends, and goes away when it fails.

    The files are not flushed to the disk one by one: after a power failure, merge again from the recipe.
    """
    # Links are followed first, so that the rename happens on the disk that was measured.
    target = out.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        check_output(out)
        if target.is_dir():
            target.rmdir()  # it is empty; not every system renames onto a folder
        os.rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            f"output folder {out} cannot be written: {error.strerror or error}",
            "a folder on a disk with room" if full else "a folder that may be written",
            "free some space or name another folder" if full else "name another folder",
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
