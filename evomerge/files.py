"""Files that are either the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from evomerge.errors import OutputError


def write_text_atomic(path: Path, text: str, *, sync: bool = True) -> None:
    """`write_bytes_atomic` of the text in UTF-8."""
    write_bytes_atomic(path, text.encode(), sync=sync)


def write_bytes_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace the file at `path` by `data`: a reader sees the old content or the new, never a part.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one step.

    Args:
        path: its folder must exist.
        data: the whole content.
        sync: wait until content and name are on the disk. Without it the step is still atomic for every
            process, but a power failure may leave an old, an empty or a missing file.

    Raises:
        OutputError: the disk is full or the folder cannot be written. The old file is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: its files are private to the user, whatever the umask says.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}",
            "a folder that exists, can be written and has room",
            "free some space or choose another folder",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: a single ``write`` may stop early, when the disk fills or a signal arrives."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make names that were created, renamed or removed in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of the file at `path` survive a power failure."""
    sync_folder(path)  # the same call serves both
