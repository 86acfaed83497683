"""Source tensors in one piece of shared memory that all workers of a machine register with CUDA: pinned once for all.

torch pins memory of its own, for each process anew, and rounds every tensor up to a power of two.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch

from evomerge.errors import reason_of
from evomerge.merge.cache.shared_cache import lock_folder, remove_if_unused
from evomerge.models.checkpoints.headers import TensorInfo
from evomerge.models.pool import Pool

_LOG = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")
_PAGE = mmap.ALLOCATIONGRANULARITY
_NUMBERS = 2  # words before the marks: what all tensors may take, and what those that are there do

Slot = tuple[str, int, int]
"""A file, and where in it a tensor begins and how many bytes it has."""


class PinnedRegion:
    """Tensors of a pool's files, each copied into its place by the first worker that wants it.

    Places are known from the headers; a place takes memory once something is there. A worker that is killed leaves
    nothing half written to be read: what is there is marked when all of it is.

    Args:
        folder: in shared memory; made when it is not there, removed by the last worker that closes the region.
        slots: the tensors.
        limit: bytes that they may take together; that of the worker which made the folder counts.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, slots: list[Slot], limit: int) -> None:
        self.folder = folder
        self._places: dict[Slot, tuple[int, int]] = {}
        end = 0
        for number, slot in enumerate(dict.fromkeys(slots)):
            self._places[slot] = number, end
            end += -(-slot[2] // _PAGE) * _PAGE
        self._lock = lock_folder(folder)
        self._registered: dict[int, int] = {}
        self._works = True
        # Whoever forgets to close it leaves nothing behind.
        self._leave = weakref.finalize(self, _leave, self._lock, folder, self._registered)
        try:
            self._open(max(end, _PAGE), limit)
        except BaseException:
            self._leave()
            raise

    def _open(self, size: int, limit: int) -> None:
        if self.folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "belongs to somebody else", str(self.folder))
        marks = 8 * _NUMBERS
        with self._alone(), (self.folder / "there").open("a+b") as file:
            # A write to a page that finds no room is a crash.
            os.posix_fallocate(file.fileno(), 0, marks + max(1, len(self._places)))
            self._words = np.memmap(self.folder / "there", np.int64, "r+", shape=(_NUMBERS,))
            if not self._words[0]:
                self._words[0] = max(1, limit)
        self._there = np.memmap(self.folder / "there", np.uint8, "r+", marks, (max(1, len(self._places)),))
        self._file = (self.folder / "sources").open("a+b")
        os.ftruncate(self._file.fileno(), size)
        self._memory = mmap.mmap(self._file.fileno(), size)

    @property
    def works(self) -> bool:
        """Whether CUDA takes it, as far as is known."""
        return self._works

    @property
    def used(self) -> int:
        """Bytes of the tensors that are there."""
        return int(self._words[1])

    @property
    def limit(self) -> int:
        """Bytes that they may take."""
        return int(self._words[0])

    def pinned(self, info: TensorInfo, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor of a file in the region, flat; ``None`` where there is no room or CUDA does not take it.

        Args:
            info: where it lies in its file.
            tensor: what is there, flat.
        """
        place = self._places.get(slot_of(info))
        if place is None or not self._works:
            return None
        number, start = place
        memory = torch.frombuffer(self._memory, dtype=torch.uint8, count=tensor.nbytes, offset=start)
        with self._alone():
            if not self._there[number]:
                if self.used + tensor.nbytes > self.limit:
                    return None
                try:
                    os.posix_fallocate(self._file.fileno(), start, tensor.nbytes)
                except OSError as error:
                    _LOG.warning("no more sources in %s: %s", self.folder, error.strerror)
                    return None
                memory.copy_(tensor.view(torch.uint8))
                self._words[1] += tensor.nbytes
                self._there[number] = 1
        return memory.view(tensor.dtype) if self._register(memory) else None

    def _register(self, memory: torch.Tensor) -> bool:
        """Have CUDA pin some memory for this process, once; whether it does."""
        address = memory.data_ptr()
        if address in self._registered:
            return True
        code = int(torch.cuda.cudart().cudaHostRegister(address, memory.nbytes, 0))
        if code:
            self._works = False
            # The next launch would report it: let it be one that nobody needs.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda").add_(1)
            _LOG.warning("sources are not pinned for all workers of a machine: cudaHostRegister returned %d", code)
            return False
        self._registered[address] = memory.nbytes
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other worker writes meanwhile; a lock that is held ends with the process that holds it."""
        with (self.folder / "writing").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Give it up, once no copy is under way; the last worker removes it."""
        self._works = False
        self._leave()
        self._file.close()


def _leave(lock: IO[str], folder: Path, registered: dict[int, int]) -> None:
    """What closing a region does."""
    if registered:
        with contextlib.suppress(Exception):  # the process may be ending, and CUDA be gone
            torch.cuda.synchronize()
            for address in registered:
                torch.cuda.cudart().cudaHostUnregister(address)
    registered.clear()
    lock.close()
    remove_if_unused(folder)


def slot_of(info: TensorInfo) -> Slot:
    """What tells a tensor of a file from others."""
    return str(info.file), info.start, info.nbytes


def open_region(pool: Pool, limit: int, root: Path = _SHARED_MEMORY) -> PinnedRegion | None:
    """The region of a pool's sources, which those of all runs that have the same files share; ``None`` without room.

    Regions that a killed worker was the last to use are removed.

    Args:
        pool: the source models.
        limit: bytes of main memory that it may take.
        root: a folder in shared memory.
    """
    prefix = f"evomerge-{os.getuid()}-sources-"
    try:
        for folder in root.glob(f"{prefix}*"):
            remove_if_unused(folder)
        slots = [slot_of(info) for info in _stored(pool)]
        limit = min(limit, shutil.disk_usage(root).free)
        if limit < max((size for *_, size in slots), default=1):
            raise OSError(f"{limit / 1e6:.0f} MB of room are less than the largest tensor has")
        return PinnedRegion(root / f"{prefix}{_content(slots)}", slots, limit)
    except OSError as error:
        _LOG.warning("every worker pins sources of its own: no room for all in %s (%s)", root, reason_of(error))
        return None


def _stored(pool: Pool) -> Iterator[TensorInfo]:
    """The tensors that are read as they lie in their files."""
    for model, names in pool.stored.items():
        for name in names.values():
            info = pool.checkpoints[model].stored(name)
            if info is not None:
                yield info


def _content(slots: list[Slot]) -> str:
    """What tells regions apart: their files as they are now, and the places of their tensors."""
    digest = hashlib.sha256(repr(slots).encode())
    for path in sorted({file for file, *_ in slots}):
        found = os.stat(path)
        digest.update(f"{os.path.realpath(path)} {found.st_size} {found.st_mtime_ns} {found.st_ino}\n".encode())
    return digest.hexdigest()[:24]
