"""Files that are either the old ones or the new ones whatever happens in between, and reading those of strangers."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from evomerge.errors import OutputError


def write_text_atomic(path: Path, text: str, *, sync: bool = True) -> None:
    """`write_bytes_atomic` of the text in UTF-8."""
    write_bytes_atomic(path, text.encode(), sync=sync)


def write_bytes_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace the file at `path` by `data`: a reader sees the old content or the new, never a part.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one step. A device, and a
    pipe that is read, are written into: a file in the place of /dev/null would be one for all.

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
        if _takes_bytes(path):
            _write_into(path, data)
            return
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}",
            "a folder that exists, can be written and has room",
            "free some space or choose another folder" if full else "choose another name or folder",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _takes_bytes(path: Path) -> bool:
    """Whether there is something that is neither file nor folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_into(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe without a reader is an error
    try:
        os.set_blocking(descriptor, True)
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: a single ``write`` may stop early, when the disk fills or a signal arrives."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_bounded(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes: no pipe that never ends, no device, nothing enormous.

    Args:
        path: the file.
        most: bytes.
        follow: whether the file may be a symbolic link.

    Raises:
        OSError: there is no such file, or it is not of that kind; `strerror` says so.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(error.errno, "it is a symbolic link", str(path)) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1) if found.st_size <= most else b""
        if found.st_size > most or len(content) > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than {most:,}", str(path))
        return content
    finally:
        os.close(descriptor)


def place_problem(path: Path) -> str:
    """Why a folder at `path` can neither be written into nor be made; empty where it can."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written"


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
