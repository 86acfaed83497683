"""The ledger's file: JSON lines that carry their number and a checksum, one writer at a time.

A line is one JSON object, ``{"seq":3,"event":"told",...,"crc32":"9ae0daaf"}``. `seq` counts from 0, so that
lost and doubled lines show. The checksum is the CRC-32 of the line's bytes before ``,"crc32":``, so that a
line can be checked without parsing it. JSON has no NaN and no infinities: they are written as the strings
``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which Python's ``float`` reads. Other floats are written with
the shortest digits that give the same float back.

A crash can leave only the last line incomplete: that line is torn, and dropped. Any other line that fails
its check is damage, and an error that names the line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.utils.files import sync_folder, write_all

_log = logging.getLogger(__name__)
_KEY = b',"crc32":"'
_TAIL = len(_KEY) + 8 + len(b'"}\n')
_LONGEST_LINE = 64 * 2**20  # bytes; bounds the memory that reading a stranger's file can take

Event = dict[str, Any]


class LedgerError(EvomergeError):
    """A ledger that is missing, damaged, locked by another process or cannot be written."""


@dataclass(frozen=True)
class TornLine:
    """An incomplete last line.

    Attributes:
        line: its number, counted from 1.
        offset: where it begins, in bytes.
        nbytes: its length.
    """

    line: int
    offset: int
    nbytes: int


def encode(fields: Mapping[str, Any]) -> bytes:
    """One line of the file, newline included; numpy scalars and arrays become numbers and lists."""
    try:
        text = _dumps(fields)
    except ValueError:  # a NaN or an infinity somewhere: the rare case pays for looking
        text = _dumps(_spelled(fields))
    body = text.encode()[:-1]
    return b'%s%s%08x"}\n' % (body, _KEY, zlib.crc32(body))


def decode(line: bytes, where: str) -> Event:
    """The event of a line that passed its check.

    Raises:
        LedgerError: the line is not a JSON object with an event's name; `where` starts the message.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{where} is not JSON ({error})", "lines that evomerge wrote") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise LedgerError(f"{where} is not an event", "JSON objects with the key 'event'")
    return event


def scan(path: Path, on_torn: Callable[[TornLine], None]) -> Iterator[tuple[int, bytes]]:
    """Check every line in order and yield its number, from 1, and its bytes.

    Memory is bounded by the longest line. The file may be growing meanwhile.

    Args:
        path: the ledger's file.
        on_torn: told of an incomplete last line, which is not yielded.

    Raises:
        LedgerError: the file is missing, or a line other than the last is damaged.
    """
    number, offset = 0, 0
    try:
        with path.open("rb", buffering=2**20) as file:
            lines = iter(partial(file.readline, _LONGEST_LINE), b"")
            for line in lines:
                number += 1
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:  # the file ends here, or did just now
                    on_torn(TornLine(number, offset, len(line)))
                    return
                if not _intact(line):
                    if next(lines, None) is not None:
                        raise _damage(path, number, "does not match its checksum")
                    on_torn(TornLine(number, offset, len(line)))
                    return
                if not line.startswith(b'{"seq":%d,' % (number - 1)):
                    raise _damage(path, number, f"is not event {number - 1}: lines are missing or doubled")
                offset += len(line)
                yield number, line
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be read: {error.strerror}", "the ledger of a run", "check the run folder"
        ) from error


def report_torn(path: Path, torn: TornLine) -> None:
    """Warn in the log of an incomplete last line."""
    _log.warning("%s: line %d is incomplete (%d bytes) and is left out", path, torn.line, torn.nbytes)


class Lock:
    """The right to write a ledger: held by one process, and given back by the kernel when it dies.

    The lock is ``flock`` on a small file of its own, which names the holder and is never removed: no lock is
    left behind by a crash, and none can be stolen by removing the file of a dead holder.

    Raises:
        LedgerError: another process (or another `Lock` in this one) holds it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._descriptor)
            raise _written_by(holder, path) from error
        except OSError as error:  # some cluster file systems are mounted without locks
            _log.warning("%s: this file system has no locks (%s); do not start a second writer", path, error.strerror)
        with contextlib.suppress(OSError):  # a full disk: naming the holder is a courtesy
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def lock_holder(path: Path) -> str | None:
    """The process that holds a `Lock`; ``None`` for nobody, and ``""`` where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def require_no_writer(path: Path) -> None:
    """Raise the `LedgerError` of a `Lock` that another process holds, without taking it."""
    holder = lock_holder(path)
    if holder:
        raise _written_by(holder, path)


def _written_by(holder: str, path: Path) -> LedgerError:
    return LedgerError(
        f"run folder {path.parent} is being written by {holder}",
        "one writer at a time",
        "wait until that run has ended, or choose another run folder",
    )


class LineFile:
    """Appends lines to the ledger's file. Checks the lines that are there and drops a torn last one.

    Attributes:
        torn: the incomplete last line that was dropped, or ``None``.
        lines: how many lines there are.
    """

    def __init__(self, path: Path) -> None:
        self.torn: TornLine | None = None
        self.lines = 0
        self._path = path
        self._offset = 0
        self._broken = self._writing = False
        if path.exists():
            for number, line in scan(path, self._remember_torn):
                self.lines = number
                self._offset += len(line)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        if self.torn is not None:
            report_torn(path, self.torn)
            os.ftruncate(self._descriptor, self._offset)
        os.fsync(self._descriptor)
        sync_folder(path.parent)

    @property
    def nbytes(self) -> int:
        """The length of the file."""
        return self._offset

    def _remember_torn(self, torn: TornLine) -> None:
        self.torn = torn

    def append(self, fields: Mapping[str, Any]) -> int:
        """Write one line with the next number and return that number. It survives the death of this process.

        Raises:
            LedgerError: the disk is full or fails. The file ends with the line before.
        """
        if self._writing:  # a signal ended an earlier write somewhere in between
            self._cut()
        if self._broken:
            raise self._failure("an earlier write failed")
        number = self.lines
        line = encode({"seq": number, **fields})
        following, offset = number + 1, self._offset + len(line)
        self._writing = True
        try:
            write_all(self._descriptor, line)
        except OSError as error:
            self._cut()
            raise self._failure(error.strerror) from error
        # Three assignments without a call between them: no signal is handled in between.
        self.lines, self._offset, self._writing = following, offset, False
        return number

    def sync(self) -> None:
        """Make every line survive a power failure.

        Raises:
            LedgerError: the disk fails; what it holds is unknown then, and nothing more is written.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = True
            raise self._failure(error.strerror) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _cut(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._offset)
            self._writing = False
        except OSError:
            self._broken = True

    def _failure(self, reason: str | None) -> LedgerError:
        return LedgerError(
            f"{self._path} cannot be written: {reason}", "a disk that works and has room", "free some space"
        )


def _damage(path: Path, number: int, what: str) -> LedgerError:
    back = f", or go back to the {number - 1} lines before it (head -n {number - 1})" if number > 1 else ""
    return LedgerError(
        f"{path}: line {number} {what}",
        "only the last line may be incomplete",
        f"restore the file from a copy{back}",
    )


def _intact(line: bytes) -> bool:
    return (
        len(line) > _TAIL
        and line[-_TAIL:-11] == _KEY
        and line[-3:] == b'"}\n'
        and line[-11:-3] == b"%08x" % zlib.crc32(line[:-_TAIL])
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a ledger cannot hold {type(value).__name__} values")


def _spelled(value: Any) -> Any:
    """A JSON value in which NaN and infinities are strings."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spelled(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_spelled(entry) for entry in value]
    return value
