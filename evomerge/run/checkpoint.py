"""Checkpoints of a run: the state of its search, written beside it while it goes on.

A checkpoint is a folder ``checkpoint/NUMBER``, its number being how many lines the ledger had: ``state.json`` and
``arrays.safetensors`` (`evomerge.run.state_files`), and ``manifest.json`` with their sizes and SHA-256 and with those
of the beginning of the ledger that it was taken after. It is written to a temporary folder, reaches the disk, and takes
its name in one step. A checkpoint saves time and nothing else: without one the whole ledger is gone through again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from evomerge.errors import ConfigError, EvomergeError
from evomerge.run.folder import RunFolder
from evomerge.run.state_files import StateError, from_bytes, to_bytes
from evomerge.utils.files import read_bounded, sync_folder, write_all
from evomerge.utils.installation import VERSION

_log = logging.getLogger(__name__)
FORMAT = 1
SHARE = 0.02
"""Of a run's time that taking states may cost: the next one waits until it is no more."""
_STATE, _ARRAYS, _MANIFEST = "state.json", "arrays.safetensors", "manifest.json"
_LARGEST_MANIFEST = 2**16
_LARGEST_FILE = 2**33


@dataclass(frozen=True)
class Position:
    """A place in a ledger.

    Attributes:
        lines, nbytes: of the ledger before it.
    """

    lines: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        position: where in the ledger it was taken.
        state: of the search.
    """

    position: Position
    state: dict[str, Any]


def check_intervals(every: float | None, evaluations: int | None, keep: int) -> None:
    """Raise `ConfigError` for a setting of `Checkpoints` that is out of range."""
    for name, value, least in (("every", every, 0), ("evaluations", evaluations, 1), ("keep", keep, 0)):
        if value is not None and not value >= least:
            raise ConfigError(f"search.checkpoint.{name} is {value}", f"at least {least}")


class Checkpoints:
    """Says when a state is to be taken, and writes states in a thread of its own, one at a time.

    Intervals are measured by a clock that nobody sets. A checkpoint that cannot be written is a warning: the ledger
    holds everything.

    Args:
        folder: the run folder.
        every: seconds between two; ``None`` for no such rule.
        evaluations: how many between two; ``None`` for no such rule.
        keep: how many of the latest stay; 0 for no checkpoints.

    Raises:
        ConfigError: as `check_intervals`.
    """

    def __init__(
        self, folder: RunFolder, *, every: float | None = 60.0, evaluations: int | None = None, keep: int = 3
    ) -> None:
        check_intervals(every, evaluations, keep)
        self._folder, self._every, self._evaluations, self._keep = folder, every, evaluations, keep
        self._began = time.monotonic()
        self._told = 0
        self._cost = 0.0
        self._taken: tuple[Position, Mapping[str, Any]] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._prefix, self._hashed = hashlib.sha256(), 0

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def wanted(self) -> bool:
        """Whether there are to be any."""
        return self._keep > 0

    def due(self, told: int) -> bool:
        """Whether a state should be taken now, `told` evaluations into the search; not while one is being written."""
        if not self._keep or self._taken is not None:
            return False
        waited = time.monotonic() - self._began
        if waited * SHARE < self._cost:
            return False
        by_time = self._every is not None and waited >= self._every
        return by_time or (self._evaluations is not None and told - self._told >= self._evaluations)

    def put(self, position: Position, state: Mapping[str, Any], told: int, seconds: float = 0.0) -> None:
        """Write this state, once the one before is written; returns at once otherwise.

        Args:
            position: the place in the ledger, everything before which is on the disk.
            state: nobody changes it from now on.
            told: evaluations so far.
            seconds: what taking the state has cost.
        """
        with self._changed:
            while self._taken is not None:
                self._changed.wait()
            self._taken = position, state
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        self._began, self._told, self._cost = time.monotonic(), told, seconds

    def close(self) -> None:
        """Wait until what was put is written."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while self._taken is None and not self._ended:
                    self._changed.wait()
                if self._taken is None:
                    return
                position, state = self._taken
            try:
                self._write(position, state)
            except (OSError, TypeError, ValueError) as error:
                _log.warning("no checkpoint was written: %s", error)
            finally:
                with self._changed:
                    self._taken = None
                    self._changed.notify_all()

    def _write(self, position: Position, state: Mapping[str, Any]) -> None:
        folder = self._folder.checkpoint
        folder.mkdir(exist_ok=True)
        number = f"{position.lines:09d}"
        temporary = folder / f".{number}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            files = dict(zip((_STATE, _ARRAYS), to_bytes(state), strict=True))
            manifest = {
                "evomerge_checkpoint": FORMAT,
                "version": VERSION,
                "ledger": {"lines": position.lines, "bytes": position.nbytes, "sha256": self._digest(position.nbytes)},
                "files": {
                    name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                    for name, data in files.items()
                },
            }
            for name, data in {**files, _MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}.items():
                _write_synced(temporary / name, data)
            sync_folder(temporary)
            target = folder / number
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune(position.lines)

    def _digest(self, nbytes: int) -> str:
        """SHA-256 of the ledger's beginning; what was read for an earlier checkpoint is not read again."""
        prefix = self._prefix.copy()
        with self._folder.ledger.open("rb") as file:
            _hash_up_to(prefix, file, self._hashed, nbytes)
        self._prefix, self._hashed = prefix, nbytes
        return prefix.hexdigest()

    def _prune(self, lines: int) -> None:
        """Leave the last ones; remove the temporary ones of killed processes, and those of a future that is not."""
        found = _numbered(self._folder)
        kept = [path for number, path in found if number <= lines][: self._keep]
        for entry in self._folder.checkpoint.iterdir():
            stale = entry.name.endswith(".tmp") or any(entry == path for _, path in found)
            if stale and entry not in kept:
                shutil.rmtree(entry, ignore_errors=True)


def read_checkpoints(folder: RunFolder) -> Iterator[Checkpoint | EvomergeError]:
    """The checkpoints of a run that are whole and belong to its ledger, the latest first; for others, why not."""
    for _, path in _numbered(folder):
        try:
            yield _read(folder, path)
        except StateError as error:
            yield error


def _read(folder: RunFolder, path: Path) -> Checkpoint:
    try:
        manifest = json.loads(read_bounded(path / _MANIFEST, _LARGEST_MANIFEST, follow=False))
        if manifest["evomerge_checkpoint"] != FORMAT:
            raise ValueError(f"its format is {manifest['evomerge_checkpoint']!r}, this version reads {FORMAT}")
        ledger = manifest["ledger"]
        position = Position(int(ledger["lines"]), int(ledger["bytes"]))
        if position.nbytes < 0:
            raise ValueError(f"its place in the ledger is {position.nbytes}")
        if folder.ledger.stat().st_size < position.nbytes:
            raise ValueError("it was taken later than the ledger ends")
        prefix = hashlib.sha256()
        with folder.ledger.open("rb") as file:
            _hash_up_to(prefix, file, 0, position.nbytes)
        if prefix.hexdigest() != ledger["sha256"]:
            raise ValueError("it is of another ledger")
        data = []
        for name in (_STATE, _ARRAYS):
            entry = manifest["files"][name]
            if (path / name).stat().st_size != entry["bytes"]:
                raise ValueError(f"{name} has {(path / name).stat().st_size} bytes of {entry['bytes']}")
            data.append(read_bounded(path / name, _LARGEST_FILE, follow=False))
            if hashlib.sha256(data[-1]).hexdigest() != entry["sha256"]:
                raise ValueError(f"{name} does not match its checksum")
        return Checkpoint(position, from_bytes(*data))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StateError(f"checkpoint {path} is left out: {reason}") from error
    except StateError as error:
        raise StateError(f"checkpoint {path} is left out: {error.given}") from error


def _numbered(folder: RunFolder) -> list[tuple[int, Path]]:
    """The folders of checkpoints, the latest first."""
    if not folder.checkpoint.is_dir():
        return []
    names = (entry for entry in folder.checkpoint.iterdir() if entry.name.isdecimal() and not entry.is_symlink())
    return sorted(((int(entry.name), entry) for entry in names), reverse=True)


def _hash_up_to(digest: Any, file: Any, begin: int, end: int) -> None:
    file.seek(begin)
    left = end - begin
    while left:
        block = file.read(min(left, 2**20))
        if not block:
            raise ValueError("the ledger is shorter than it was")
        digest.update(block)
        left -= len(block)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
